"""Confidence intervals of shares."""

from __future__ import annotations

import math

Z99 = 2.5758293035489004  # two-sided 99 %


def wilson(successes: float, trials: float, *, z: float = Z99) -> tuple[float, float]:
    """Wilson's score interval of a binomial share; ``(0, 1)`` without trials.

    Source: Wilson, Probable inference, J. Am. Stat. Assoc. 22, 1927.

    >>> [round(bound, 4) for bound in wilson(8, 10, z=1.96)]
    [0.4902, 0.9433]
    """
    if trials <= 0:
        return 0.0, 1.0
    share = successes / trials
    spread = z * math.sqrt(share * (1 - share) / trials + (z / trials) ** 2 / 4)
    scale = 1 + z * z / trials
    centre = share + z * z / (2 * trials)
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
