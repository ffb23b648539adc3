"""The guards' trips that this router knows, its own and those of others, kept on local disk.

A trip holds, across restarts and without Kafka, until a snapshot of its rollout lists it as seen.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from homeostat.common.schemas.rollouts import RolloutSnapshot, Trip

logger = logging.getLogger(__name__)

MAX_KEPT = 256
_decode = msgspec.json.Decoder(list[Trip]).decode


class Trips:
    """Known trips by key; ``path`` survives the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Trip] = {}
        if path.exists():
            try:
                self._known = {trip.key: trip for trip in _decode(path.read_bytes())}
            except (msgspec.DecodeError, OSError) as error:
                logger.warning("kept trips unreadable", extra={"error": str(error)})

    def __iter__(self) -> Iterator[Trip]:
        return iter(list(self._known.values()))

    def forbids(self, snapshot: RolloutSnapshot) -> bool:
        """Whether the snapshot's challenger was tripped, and the judge has not heard of it yet."""
        key = f"{snapshot.rollout}/{snapshot.challenger}"
        return key in self._known and key not in snapshot.seen_trips

    def add(self, trip: Trip) -> bool:
        """Learn of a trip; whether it was news."""
        if trip.key in self._known:
            return False
        self._known[trip.key] = trip
        for key in list(self._known)[:-MAX_KEPT]:
            del self._known[key]
        self._save()
        return True

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(list(self._known.values())))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
