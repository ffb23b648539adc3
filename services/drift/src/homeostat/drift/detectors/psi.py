"""Population stability index: the symmetrised Kullback-Leibler divergence of binned shares.

Without drift it is distributed as (1/n + 1/m) times chi-square with bins-1 degrees of freedom, so
its mean is far from zero in small windows; ``noise`` is that mean. Source: Yurdakul, Statistical
Properties of Population Stability Index, Western Michigan University 2018.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from homeostat.drift.detectors.histograms import PSEUDO_COUNT, Counts


def index(reference: Counts, current: Counts, *, pseudo_count: float = PSEUDO_COUNT) -> float:
    """The index; ``pseudo_count`` is added to each bin of both, because one empty bin makes it
    infinite.

    >>> round(index(np.array([50, 50]), np.array([20, 80]), pseudo_count=0), 4)
    0.4159
    """
    p, q = (counts + pseudo_count for counts in (reference, current))
    p, q = p / p.sum(), q / q.sum()
    return float(((q - p) * np.log(q / p)).sum())


def noise(bins: int, *, reference_size: int, current_size: int) -> float:
    """The mean of the index when nothing has changed.

    >>> round(noise(10, reference_size=10_000, current_size=500), 4)
    0.0189
    """
    return (bins - 1) * (1 / reference_size + 1 / current_size)


def p_value(value: float, bins: int, *, reference_size: int, current_size: int) -> float:
    """How often chance gives an index this large.

    >>> round(p_value(16.919 * (1 / 1000 + 1 / 500), 10, reference_size=1000, current_size=500), 3)
    0.05
    """
    if bins < 2:
        return 1.0
    return float(special.chdtrc(bins - 1, value / (1 / reference_size + 1 / current_size)))
