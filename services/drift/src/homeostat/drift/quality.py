"""Faults that look like drift: missing values, a column that stopped moving, a change of unit.

They page people and never retrain: a model fitted to broken data would learn the fault.
"""

from __future__ import annotations

import math

import numpy as np

from homeostat.drift.detectors import ks
from homeostat.drift.detectors.histograms import Values, histogram
from homeostat.drift.intervals import wilson
from homeostat.drift.window import Column

FACTORS = (1e-3, 1e-2, 1e-1, 1e1, 1e2, 1e3)
FIT = 0.12  # KS of the rescaled sample: about the 99.9 % quantile of chance with 256 values
GAIN = 3.0  # and the rescaled sample must be this much closer than the raw one
IMPOSSIBLE = math.log(1e-9)


def missing_excess(column: Column, *, missing: int, rows: int, allowed: float) -> float | None:
    """How far the share of missing values lies above the reference's, where that is beyond
    ``allowed``.

    The interval of the current share must exclude the reference's, so that a few rows prove
    nothing.
    """
    if rows == 0 or column.samples == 0:
        return None
    usual = column.missing / column.samples
    excess = missing / rows - usual
    low, _ = wilson(missing, rows)
    return excess if excess > allowed and low > usual else None


def is_stuck(column: Column, *, counts: Values, sample: Values) -> bool:
    """Whether all values are one value, where the reference makes that impossible by chance.

    >>> from homeostat.drift.detectors import Histogram
    >>> column = Column("x", np.array([1.0]), Histogram.of(np.array([70, 30])), missing=0)
    >>> is_stuck(column, counts=np.array([500, 0]), sample=np.zeros(256))
    True
    >>> is_stuck(column, counts=np.array([5, 0]), sample=np.zeros(5))
    False
    """
    filled = np.flatnonzero(counts)
    known = sample[~np.isnan(sample)]
    if len(filled) != 1 or len(known) == 0 or known.min() != known.max():
        return False
    share = column.counts[filled[0]] / column.counts.sum()
    return bool(share == 0 or counts.sum() * math.log(share) < IMPOSSIBLE)


def unit_factor(column: Column, *, sample: Values, min_gap: float) -> float | None:
    """The factor by which values were multiplied, if undoing it gives the reference back.

    >>> values = np.linspace(1, 9, 200)
    >>> from homeostat.drift.detectors import Histogram
    >>> edges = np.arange(2.0, 9.0)
    >>> column = Column("x", edges, Histogram.of(histogram(values, edges)), missing=0)
    >>> unit_factor(column, sample=values * 100, min_gap=0.15)
    100.0
    """
    known = sample[~np.isnan(sample)]
    if len(known) < 50:
        return None
    raw = ks.distance(column.counts, histogram(known, column.edges))
    if raw < min_gap:
        return None
    gaps = {
        factor: ks.distance(column.counts, histogram(known / factor, column.edges))
        for factor in FACTORS
    }
    best = min(gaps, key=lambda factor: gaps[factor])
    return best if gaps[best] <= FIT and gaps[best] * GAIN <= raw else None
