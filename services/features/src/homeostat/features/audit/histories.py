"""What came to a sample of one entity's keys, in the order of its log. Pure.

A key belongs to the sample from its first hop in the log, or never: a fold of a part of what came
to it would differ from the one that was served for no fault of anybody. So the sample takes no more
keys once one has found no room, and a key leaves it for good when its history grows too long, or
when events of one id come twice: which of those the worker has folded depends on how long it
remembers ids.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

import numpy as np

from homeostat.common.schemas.hops import MAX_ROWS
from homeostat.features.hops import EventHops, Hops, Seen, Sent, unseen

KNOWN_KEYS = 100_000  # whose place in or out of the sample is remembered
LOOSE_PARTS = 64  # of a key, before they are joined
HASHES = 1 << 32


class History:
    """The hops of one key."""

    def __init__(self) -> None:
        self.rows = 0
        self._parts: list[Hops] = []
        self._joined = 0  # how many parts are as few as they can be
        self._places: dict[int, int] = {}  # of events by the hash of their id

    def add(self, hops: Hops) -> bool:
        """Take the next hops; false if an event has come before."""
        self.rows += len(hops)
        self._parts.append(hops)
        if len(self._parts) - self._joined > LOOSE_PARTS:
            self._join()
        if not isinstance(hops, EventHops):
            return True
        new = dict(zip(hops.hashes.tolist(), hops.places.tolist(), strict=True))
        is_new = len(new) == len(hops) and self._places.keys().isdisjoint(new)
        self._places |= new
        return is_new

    def place_of(self, event: int) -> int | None:
        """Where the event with an id of this hash lies in the log."""
        return self._places.get(event)

    def before(self, place: int) -> list[Hops]:
        """Everything that lies before a place of the log."""
        parts = [part.where(part.places < place) for part in self._parts]
        return [part for part in parts if len(part)]

    def places_from(self, place: int) -> list[int]:
        """The places at or behind ``place``, in order."""
        parts = [part.places[part.places >= place] for part in self._parts]
        places: list[int] = np.concatenate([np.empty(0, np.int64), *parts]).tolist()
        return places

    def at(self, place: int) -> EventHops:
        """The event at a place."""
        for part in self._parts:
            if isinstance(part, EventHops) and len(found := part.where(part.places == place)):
                return found
        raise KeyError(place)

    def _join(self) -> None:
        parts: list[Hops] = []
        for is_event, group in groupby(self._parts, lambda part: isinstance(part, EventHops)):
            same = list(group)
            if is_event:
                same = [EventHops.joined([part for part in same if isinstance(part, EventHops)])]
            parts += same
        self._parts, self._joined = parts, len(parts)


class Histories:
    """The sample of one entity, over all partitions of its log."""

    def __init__(self, entity: str, *, share: float, max_keys: int, max_rows: int) -> None:
        self.entity = entity
        self.retired = 0  # keys that have left the sample
        self.positions: dict[int, int] = {}  # by partition: next offset of the log
        self._is_chosen = lru_cache(KNOWN_KEYS)(
            lambda key: zlib.crc32(key.encode()) < share * HASHES
        )
        self._max_keys = max_keys
        self._max_rows = max_rows
        self._is_closed = False
        self._seen: dict[int, Seen] = {}
        self._histories: dict[str, History | None] = {}  # none: retired

    def __len__(self) -> int:
        """How many keys are in the sample."""
        return len(self._histories) - self.retired

    def is_chosen(self, key: str) -> bool:
        """Whether the key is of those to look at, if there is room."""
        return self._is_chosen(key)

    def of(self, key: str) -> History | None:
        """What came to a key; ``None`` if that is not known, or not all of it."""
        return self._histories.get(key)

    def has_all(self, key: str) -> bool:
        """Whether what ``of`` says of a key is all that came to it, be it nothing."""
        return self._is_chosen(key) and (
            self._histories[key] is not None if key in self._histories else not self._is_closed
        )

    def take(self, partition: int, offset: int, sent: Sent) -> None:
        """Take in the record at an offset of a partition of the log."""
        self.skip(partition, offset)
        hops = sent.hops.where(unseen(sent, self._seen.setdefault(partition, {})))
        rows: dict[str, list[int]] = defaultdict(list)
        for row, key in enumerate(_keys(hops, self.entity)):
            if key is not None and self._is_chosen(key):
                rows[key].append(row)
        for key, mine in rows.items():
            self._add(key, hops.take(np.array(mine)))

    def skip(self, partition: int, offset: int) -> None:
        """Leave out the record at an offset, which nobody could read."""
        self.positions[partition] = offset + 1

    def _add(self, key: str, hops: Hops) -> None:
        if key not in self._histories:
            self._is_closed = self._is_closed or len(self) >= self._max_keys
            if self._is_closed:
                return
            self._histories[key] = History()
        history = self._histories[key]
        if history is None:
            return
        is_sound = history.add(hops) and history.rows <= self._max_rows
        if not is_sound:
            self._histories[key] = None
            self.retired += 1


def place_of_offset(offset: int) -> int:
    """The first place of the record at an offset."""
    return offset * MAX_ROWS


def _keys(hops: Hops, entity: str) -> Sequence[str | None]:
    return hops.columns.strings[entity] if isinstance(hops, EventHops) else hops.keys_of(entity)
