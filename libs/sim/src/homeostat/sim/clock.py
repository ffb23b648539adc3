"""Time that passes when it is told to."""

from __future__ import annotations

from datetime import datetime

from homeostat.common.clock import from_millis


class VirtualClock:
    """Wall time and counter of a simulation; within a step no time passes at all."""

    def __init__(self, millis: int = 0) -> None:
        self._millis = millis

    def advance_to(self, millis: int) -> None:
        """Move forwards; an instant that has passed changes nothing."""
        self._millis = max(self._millis, millis)

    def now(self) -> datetime:
        return from_millis(self._millis)

    def monotonic(self) -> float:
        return self._millis / 1000
