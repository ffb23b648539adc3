"""A retry budget: second calls are a share of the first ones, lest a failure become a flood."""

from __future__ import annotations


class RetryBudget:
    """Each request earns ``ratio`` of a second call; at most ``capacity`` are kept."""

    def __init__(self, *, ratio: float, capacity: float) -> None:
        self._ratio = ratio
        self._capacity = capacity
        self._tokens = capacity

    def earn(self) -> None:
        self._tokens = min(self._capacity, self._tokens + self._ratio)

    def spend(self) -> bool:
        """Take a token; ``False`` when none is left."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
