"""Jensen-Shannon distance: the square root of the divergence in bits, between 0 and 1.

Near zero the divergence (in nats) is an eighth of the PSI, hence the same chi-square describes its
noise.
Source: Lin, Divergence measures based on the Shannon entropy, IEEE Trans. Inf. Theory 37, 1991.
"""

from __future__ import annotations

import math

from scipy import special

from homeostat.drift.detectors.histograms import Counts

_BITS = 8 * math.log(2)


def divergence(reference: Counts, current: Counts) -> float:
    """In bits; its square root is ``scipy.spatial.distance.jensenshannon(p, q, base=2)``.

    >>> import numpy as np
    >>> round(divergence(np.array([1, 0]), np.array([0, 1])), 6)
    1.0
    """
    p, q = reference / reference.sum(), current / current.sum()
    middle = (p + q) / 2
    return float(max(0.0, (special.rel_entr(p, middle) + special.rel_entr(q, middle)).sum())) / (
        2 * math.log(2)
    )


def distance(reference: Counts, current: Counts) -> float:
    """
    >>> import numpy as np
    >>> round(distance(np.array([50, 50]), np.array([20, 80])), 4)
    0.2704
    """
    return math.sqrt(divergence(reference, current))


def noise(bins: int, *, reference_size: int, current_size: int) -> float:
    """The mean of the divergence (bits) when nothing has changed."""
    return (bins - 1) * (1 / reference_size + 1 / current_size) / _BITS


def p_value(bits: float, bins: int, *, reference_size: int, current_size: int) -> float:
    """How often chance gives a divergence this large."""
    if bins < 2:
        return 1.0
    return float(special.chdtrc(bins - 1, _BITS * bits / (1 / reference_size + 1 / current_size)))
