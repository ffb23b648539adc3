"""Time as an argument: wall time, and the one clock of each pipeline.

Instants on the hot paths are ``int`` milliseconds since the Unix epoch (UTC); everywhere else they
are aware ``datetime``. Live, a pipeline's clock is wall time. Under replay it is what the replayed
records say (their ``available_at``), and it moves only forwards.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Wall time for facts, a monotonic counter for timeouts and leases."""

    def now(self) -> datetime: ...

    def monotonic(self) -> float: ...


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


def to_millis(instant: datetime) -> int:
    """Milliseconds since the epoch of an aware instant.

    >>> to_millis(datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC))
    1000
    """
    if instant.tzinfo is None:
        raise ValueError("a naive datetime has no instant; give it a time zone")
    return round(instant.timestamp() * 1000)


def from_millis(millis: int) -> datetime:
    """
    >>> from_millis(1000).isoformat()
    '1970-01-01T00:00:01+00:00'
    """
    return datetime.fromtimestamp(millis / 1000, UTC)


class PipelineClock:
    """The clock of one pipeline: wall time until a replayed record sets it.

    ``observe`` takes the ``available_at`` of each consumed record (``None`` for live ones). After
    the first replayed record the clock stands still between records, so that a fast replay does not
    make training, holds or cooldowns look slow.
    """

    def __init__(self, wall: Clock) -> None:
        self._wall = wall
        self._replayed_millis: int | None = None

    @property
    def is_replayed(self) -> bool:
        return self._replayed_millis is not None

    def observe(self, available_at_millis: int | None) -> None:
        if available_at_millis is None:
            return
        if self._replayed_millis is None or available_at_millis > self._replayed_millis:
            self._replayed_millis = available_at_millis

    def now_millis(self) -> int:
        if self._replayed_millis is not None:
            return self._replayed_millis
        return to_millis(self._wall.now())

    def now(self) -> datetime:
        return from_millis(self.now_millis())
