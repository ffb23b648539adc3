"""A circuit breaker: after some failures in a row, leave a dependency alone for a moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta


class Breaker:
    """Opens after ``failures`` in a row; after ``open_for`` one call at a time may try again."""

    def __init__(
        self,
        *,
        failures: int,
        open_for: timedelta,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failures = failures
        self._open_seconds = open_for.total_seconds()
        self._monotonic = monotonic
        self._in_a_row = 0
        self._closed_from = 0.0

    @property
    def is_open(self) -> bool:
        return self._in_a_row >= self._failures

    def allows(self) -> bool:
        """Whether to call now. While open, a permitted trial holds off the others."""
        if not self.is_open:
            return True
        now = self._monotonic()
        if now < self._closed_from:
            return False
        self._closed_from = now + self._open_seconds
        return True

    def succeeded(self) -> None:
        self._in_a_row = 0

    def failed(self) -> None:
        self._in_a_row += 1
        if self.is_open:
            self._closed_from = self._monotonic() + self._open_seconds
