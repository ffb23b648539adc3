"""Kolmogorov-Smirnov on binned data: the largest gap between two cumulative shares.

Evaluated at the bin edges only, so it never exceeds the statistic of the raw values and falls
short of it by at most the largest share that one bin holds. On discrete data its p-value is
conservative.
Source: Smirnov, Table for estimating the goodness of fit of empirical distributions, Ann. Math.
Stat. 1948.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from homeostat.drift.detectors.histograms import Counts


def distance(reference: Counts, current: Counts) -> float:
    """The statistic of ``scipy.stats.ks_2samp``, had every value moved to its bin's upper edge.

    >>> float(distance(np.array([50, 50]), np.array([20, 80])))
    0.3
    """
    gaps = np.cumsum(reference) / reference.sum() - np.cumsum(current) / current.sum()
    return float(np.abs(gaps).max())


def p_value(value: float, *, reference_size: int, current_size: int) -> float:
    """How often chance gives a gap this large, asymptotically.

    >>> round(p_value(0.0608, reference_size=1000, current_size=1000), 2)
    0.05
    """
    effective = reference_size * current_size / (reference_size + current_size)
    return float(special.kolmogorov(value * math.sqrt(effective)))
