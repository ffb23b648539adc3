"""Which event ids a partition has folded already: exact 64-bit hashes over a stated horizon.

Ids are kept in chunks, oldest first. A chunk is one record of the changelog: the newest is
written again until it is full, an expired one is deleted there too, so that a commit costs at
most one chunk more than the ids it brings.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from homeostat.common.windows.compiled import batch_kernel

CHUNK_IDS = 4_096
SMALLEST_TABLE = 1 << 12

Hashes = NDArray[np.uint64]


@dataclass
class _Chunk:
    number: int
    newest: int  # pipeline time of its last id, epoch ms
    ids: list[Hashes] = field(default_factory=list)
    size: int = 0
    is_changed: bool = True


class RecentIds:
    """An exact set of ids that forgets the oldest, by pipeline time and by number."""

    def __init__(self, *, horizon_ms: int, capacity: int) -> None:
        self._horizon_ms = horizon_ms
        self._capacity = capacity
        self._table = np.zeros(SMALLEST_TABLE, np.uint64)
        self._chunks: deque[_Chunk] = deque()
        self._expired: list[int] = []
        self._size = 0
        self.forgotten_early = 0  # ids given up for want of capacity, before the horizon

    def __len__(self) -> int:
        return self._size

    def admit(self, hashes: Hashes, now: int) -> NDArray[np.bool_]:
        """Remember the ids; true for those that are new, also within the batch."""
        keys = np.where(hashes == 0, np.uint64(1), hashes)  # 0 marks a free place of the table
        self._make_room(keys.size)
        is_new = np.empty(keys.size, np.bool_)
        _insert(self._table, keys, is_new)
        self._append(keys[is_new], now)
        self._forget(now)
        return is_new

    def take_changed(self) -> list[tuple[int, bytes | None]]:
        """Chunks to be written now, by number; ``None`` for those to be deleted."""
        changes: list[tuple[int, bytes | None]] = [(number, None) for number in self._expired]
        self._expired.clear()
        for chunk in self._chunks:
            if chunk.is_changed:
                chunk.is_changed = False
                head = chunk.newest.to_bytes(8, "little", signed=True)
                changes.append((chunk.number, head + np.concatenate(chunk.ids).tobytes()))
        return changes

    def restore(self, chunks: dict[int, bytes]) -> None:
        """Put back what ``take_changed`` gave, whatever the order it was read in."""
        for number, packed in sorted(chunks.items()):
            newest = int.from_bytes(packed[:8], "little", signed=True)
            ids = np.frombuffer(packed, np.uint64, offset=8)
            self._make_room(ids.size)
            _insert(self._table, ids, np.empty(ids.size, np.bool_))
            self._chunks.append(_Chunk(number, newest, [ids], ids.size, is_changed=False))
            self._size += ids.size

    def _append(self, keys: Hashes, now: int) -> None:
        while keys.size:
            if not self._chunks or self._chunks[-1].size >= CHUNK_IDS:
                number = self._chunks[-1].number + 1 if self._chunks else 0
                self._chunks.append(_Chunk(number, now))
            chunk = self._chunks[-1]
            taken = keys[: CHUNK_IDS - chunk.size]
            chunk.ids.append(taken)
            chunk.size += taken.size
            chunk.newest = max(chunk.newest, now)
            chunk.is_changed = True
            self._size += taken.size
            keys = keys[taken.size :]

    def _forget(self, now: int) -> None:
        while len(self._chunks) > 1:
            oldest = self._chunks[0]
            is_expired = oldest.newest < now - self._horizon_ms
            if not is_expired and self._size <= self._capacity:
                return
            if not is_expired:
                self.forgotten_early += oldest.size
            _remove(self._table, np.concatenate(oldest.ids))
            self._size -= oldest.size
            self._expired.append(oldest.number)
            self._chunks.popleft()

    def _make_room(self, more: int) -> None:
        needed = 2 * (self._size + more)
        if needed <= self._table.size:
            return
        size = self._table.size
        while size < needed:
            size *= 2
        kept = self._table[self._table != 0]
        self._table = np.zeros(size, np.uint64)
        _insert(self._table, kept, np.empty(kept.size, np.bool_))


@batch_kernel
def _insert(table: Hashes, keys: Hashes, is_new: NDArray[np.bool_]) -> None:
    mask = np.uint64(table.size - 1)
    for i in range(keys.size):
        at = keys[i] & mask
        while table[at] != 0 and table[at] != keys[i]:
            at = (at + np.uint64(1)) & mask
        is_new[i] = table[at] == 0
        table[at] = keys[i]


@batch_kernel
def _remove(table: Hashes, keys: Hashes) -> None:
    """Take keys out and close the gaps that they leave in the runs of linear probing."""
    mask = np.uint64(table.size - 1)
    one = np.uint64(1)
    for i in range(keys.size):
        at = keys[i] & mask
        while table[at] != 0 and table[at] != keys[i]:
            at = (at + one) & mask
        if table[at] == 0:
            continue
        hole = at
        following = (at + one) & mask
        while table[following] != 0:
            home = table[following] & mask
            # Move back what could not be found past the hole.
            if ((following - home) & mask) >= ((following - hole) & mask):
                table[hole] = table[following]
                hole = following
            following = (following + one) & mask
        table[hole] = np.uint64(0)
