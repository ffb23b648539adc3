"""Deterministic assignment: a unit keeps its variant on every path, replica and restart.

The buckets ``[0, BUCKETS)`` of a rollout are cut into three: the challenger's interval grows from
zero upwards, so a unit that has met the challenger never flips back while ramping; the holdback is
cut from the top and stays on the champion until promotion, a control that runs beside.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

BUCKETS = 10_000  # one bucket is 0.01 % of traffic


class Variant(StrEnum):
    CHAMPION = "champion"
    CHALLENGER = "challenger"
    SHADOW = "shadow"  # scored beside the champion, never answered with


def bucket(unit: str, *, salt: str) -> int:
    """Map a unit to ``[0, BUCKETS)``.

    Built on BLAKE2b because ``hash()`` is seeded per process and would reshuffle users on every
    restart. Changing ``salt`` re-randomises the experiment.

    >>> bucket("customer-1", salt="fraud-2")
    7871
    """
    digest = hashlib.blake2b(f"{salt}:{unit}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") * BUCKETS >> 64


@dataclass(frozen=True)
class Split:
    """How traffic is cut between champion and challenger, in shares of all units (0-1)."""

    challenger: float = 0.0
    holdback: float = 0.0

    def variant(self, unit_bucket: int) -> Variant:
        """Buckets below the challenger's share get it, unless the holdback claims them.

        >>> Split(challenger=1.0, holdback=0.05).variant(9_600)
        <Variant.CHAMPION: 'champion'>
        """
        if unit_bucket >= BUCKETS - round(self.holdback * BUCKETS):
            return Variant.CHAMPION
        if unit_bucket < round(self.challenger * BUCKETS):
            return Variant.CHALLENGER
        return Variant.CHAMPION

    def propensity(self, variant: Variant) -> float:
        """The probability with which a unit is given ``variant``."""
        challenger = min(self.challenger, 1.0 - self.holdback)
        return challenger if variant is Variant.CHALLENGER else 1.0 - challenger
