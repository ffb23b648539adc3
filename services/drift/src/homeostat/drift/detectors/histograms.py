"""Histograms: binning by fixed edges, and fewer bins where the approximations need fuller ones."""

from __future__ import annotations

from typing import Any

import numpy as np

Counts = np.ndarray[tuple[int], np.dtype[Any]]
Values = np.ndarray[tuple[int], np.dtype[np.float64]]

PSEUDO_COUNT = 0.5  # Jeffreys' prior of a share
COARSE_BINS = 20


def histogram(values: Values, edges: Values) -> Counts:
    """Counts of the ``len(edges) + 1`` bins ``[edges[i-1], edges[i])``, open at both ends; NaN is
    left out.

    >>> histogram(np.array([0.0, 1.0, 1.5, 9.0, np.nan]), np.array([1.0, 2.0])).tolist()
    [1, 2, 1]
    """
    known = values[~np.isnan(values)]
    return np.bincount(np.searchsorted(edges, known, side="right"), minlength=len(edges) + 1)


def coarse_starts(reference: Counts, bins: int = COARSE_BINS) -> Counts:
    """Where neighbouring bins are joined until each holds at least ``1 / bins`` of the reference.

    The chi-square of PSI and JS needs several values expected in every bin; a bin that holds much
    (an atom of a discrete feature) stays a bin of its own.

    >>> coarse_starts(np.array([1, 1, 8, 1, 9]), bins=4).tolist()
    [0, 3]
    """
    share = reference.sum() / bins
    starts, held = [0], 0
    for place, count in enumerate(reference[:-1]):
        held += count
        if held >= share:
            starts.append(place + 1)
            held = 0
    if len(starts) > 1 and reference[starts[-1] :].sum() < share:
        starts.pop()
    return np.array(starts)


def coarsen(counts: Counts, starts: Counts) -> Counts:
    """
    >>> coarsen(np.array([1, 1, 8, 1, 9]), np.array([0, 3])).tolist()
    [10, 10]
    """
    return np.add.reduceat(counts, starts)
