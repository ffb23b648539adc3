"""A worker's scratch: the rows of one entity in memory, found by key, bounded by eviction."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from homeostat.common.windows import batches
from homeostat.common.windows.rows import BLOCK_SIZES, LIST_STATE, NO_TIME, Rows
from homeostat.common.windows.tables import Plan

FIRST_ROWS = 16


def empty_rows(plan: Plan, count: int) -> Rows:
    """Make the arrays of ``count`` rows, none of which exists yet."""
    free = np.full(1 + BLOCK_SIZES, -1, np.int64)
    free[0] = 0
    return Rows(
        newest=np.full(count, NO_TIME, np.int64),
        lists=np.zeros((count, plan.lists.size), LIST_STATE),
        arena=np.empty(plan.headroom, np.int64),
        free=free,
    )


class State:
    """Rows by entity key. Not thread-safe: one partition's folder owns it.

    Row numbers stay valid until their key is evicted.
    """

    def __init__(self, plan: Plan) -> None:
        self.rows = empty_rows(plan, FIRST_ROWS)
        self._plan = plan
        self._row_of: dict[str, int] = {}
        self._keys: list[str | None] = []
        self._free: list[int] = []
        self._used = np.zeros(FIRST_ROWS, np.int64)  # the tick of the last touch
        self._tick = 0
        self._changed = np.zeros(FIRST_ROWS, np.bool_)

    def __len__(self) -> int:
        return len(self._row_of)

    def __contains__(self, key: str) -> bool:
        return key in self._row_of

    @property
    def memory_bytes(self) -> int:
        """The bytes of the arrays, used or not."""
        return sum(array.nbytes for array in self.rows)

    def intern(self, keys: Sequence[str | None]) -> NDArray[np.int32]:
        """Number the rows of keys, with new rows for new keys; a null key is -1: folded nowhere."""
        numbers = [self._row_of.get(key) for key in keys]  # type: ignore[arg-type]  # null: None
        if None in numbers:
            for i, number in enumerate(numbers):
                key = keys[i]
                if number is None:
                    numbers[i] = -1 if key is None else self._add(key)
        return np.array(numbers, np.int32)

    def find(self, keys: Sequence[str | None]) -> NDArray[np.int32]:
        """Number the rows of keys: -1 for those that are not here."""
        return np.array([self._row_of.get(key, -1) if key else -1 for key in keys], np.int32)

    def keys(self, numbers: NDArray[np.int32]) -> list[str]:
        """Name the rows."""
        named = [self._keys[number] for number in numbers.tolist()]
        return [key for key in named if key is not None]

    def touch(self, numbers: NDArray[np.int32]) -> None:
        """Note that rows are about to change."""
        self._tick += 1
        numbers = numbers[numbers >= 0]
        self._used[numbers] = self._tick
        self._changed[numbers] = True

    def take_changed(self) -> NDArray[np.int32]:
        """Name the rows that have changed since the last call: those to be packed now."""
        numbers = np.flatnonzero(self._changed).astype(np.int32)
        self._changed[numbers] = False
        return numbers

    def evict_cold(self, keep: int) -> list[str]:
        """Drop the rows untouched for longest until ``keep`` are left, and name their keys.

        A changed row stays until `take_changed` has named it: nothing is dropped before it could
        be stored. So more than ``keep`` rows may remain.
        """
        surplus = len(self) - keep
        if surplus <= 0:
            return []
        candidates = np.fromiter(self._row_of.values(), np.int32, len(self))
        candidates = candidates[~self._changed[candidates]]
        order = np.argsort(self._used[candidates], kind="stable")
        cold = candidates[order[:surplus]]
        keys = self.keys(cold)
        batches.clear_rows(self.rows, cold)
        for key, number in zip(keys, cold.tolist(), strict=True):
            del self._row_of[key]
            self._keys[number] = None
            self._free.append(number)
        return keys

    def grow_arena(self) -> None:
        arena = np.empty(2 * self.rows.arena.size, np.int64)
        used = int(self.rows.free[0])
        arena[:used] = self.rows.arena[:used]
        self.rows = self.rows._replace(arena=arena)

    def _add(self, key: str) -> int:
        known = self._row_of.get(key)
        if known is not None:  # twice in one batch
            return known
        if self._free:
            number = self._free.pop()
            self._keys[number] = key
        else:
            number = len(self._keys)
            if number == self.rows.newest.size:
                self._grow_rows()
            self._keys.append(key)
        self._row_of[key] = number
        return number

    def _grow_rows(self) -> None:
        count = self.rows.newest.size
        more = empty_rows(self._plan, count)
        self.rows = self.rows._replace(
            newest=np.concatenate([self.rows.newest, more.newest]),
            lists=np.concatenate([self.rows.lists, more.lists]),
        )
        self._used = np.concatenate([self._used, np.zeros(count, np.int64)])
        self._changed = np.concatenate([self._changed, np.zeros(count, np.bool_)])
