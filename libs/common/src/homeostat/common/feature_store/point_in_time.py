"""The newest row of a key that was known at an instant: a join in one pass, with nothing sorted.

A row counts at an instant when it had happened and had become available by then; of those the one
with the newest event time does, so that one which came late never hides a newer one. That is two
conditions, which an as-of join on one column cannot say.

Only the instants are sorted. Each row is offered to the first instant of its key that could have
seen it, which keeps the best row offered; then every instant hands its row down to the next of the
key. What is in memory grows with the instants, whatever the length of the history.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from homeostat.common.instants import MIN_MILLIS
from homeostat.common.windows.compiled import batch_kernel, kernel

SCAN_ROWS = 1 << 20  # a batch of keys and times: each looks the keys up in a table of its own
GATHER_ROWS = 1 << 16  # a batch of feature values
NO_ROW = -1

F64 = np.ndarray[tuple[int, int], np.dtype[np.float64]]
I64 = np.ndarray[tuple[int], np.dtype[np.int64]]
Ranks = np.ndarray[tuple[int, int], np.dtype[np.int64]]  # rows by event time and what breaks a tie


@dataclass(frozen=True)
class History:
    """The rows of features over time, with the names of the columns that matter.

    Of rows with one event time the newest in ``available_at`` counts, then by ``ties``: columns of
    integers that tell any two rows of a key apart, so that the order of files has no say. Times are
    int64, epoch ms.
    """

    rows: ds.Dataset
    key: str
    features: Sequence[str]
    event_time: str = "event_time"
    available_at: str = "available_at"
    ties: Sequence[str] = ()
    where: ds.Expression | None = None

    @property
    def order(self) -> list[str]:
        return [self.event_time, self.available_at, *self.ties]


@dataclass(frozen=True)
class KnownRows:
    """For each of ``n`` instants the row that was known; ``values[n, f]`` is NaN where none was."""

    values: F64
    event_times: I64  # epoch ms; NEVER without a row

    NEVER = MIN_MILLIS - 1

    @property
    def is_known(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return np.not_equal(self.event_times, self.NEVER)


def known_rows(
    history: History, keys: pa.Array, at: I64, *, max_age: int | None = None
) -> KnownRows:
    """Read what was known of each key at its instant ``at`` (epoch ms).

    A row older than ``max_age`` (ms) then counts as none. An instant without a key knows nothing.
    """
    instants = _Instants(keys.cast(history.rows.schema.field(history.key).type), at)
    ranks = np.full((len(at), len(history.order)), KnownRows.NEVER, np.int64)
    winners = np.full(len(at), NO_ROW, np.int64)
    sizes: list[int] = []
    for fragment in history.rows.get_fragments():
        first = sum(sizes)
        sizes.append(0)
        for batch in _scan(history, fragment, [history.key, *history.order], SCAN_ROWS):
            codes = instants.codes(batch.column(history.key))
            order = [_integers(batch.column(name)) for name in history.order]
            offered = np.stack(order, axis=1)
            _offer(instants.begins, instants.at, codes, offered, first + sizes[-1], ranks, winners)
            sizes[-1] += batch.num_rows
    _hand_down(instants.begins, ranks, winners)
    if max_age is not None:
        winners[ranks[:, 0] < instants.at - max_age] = NO_ROW
    ranks[winners == NO_ROW, 0] = KnownRows.NEVER
    values = np.full((len(at), len(history.features)), np.nan)
    values[instants.places] = _gather(history, winners, sizes)
    event_times = np.full(len(at), KnownRows.NEVER, np.int64)
    event_times[instants.places] = ranks[:, 0]
    return KnownRows(values, event_times)


class _Instants:
    """Instants by key and time; ``begins[c]`` to ``begins[c + 1]`` are those of key code ``c``."""

    def __init__(self, keys: pa.Array, at: I64) -> None:
        encoded = keys.dictionary_encode()
        self._keys = encoded.dictionary
        codes = _integers(encoded.indices.fill_null(len(self._keys)))
        self.places = np.lexsort((at, codes))
        self.at = np.ascontiguousarray(at[self.places], np.int64)
        self.begins = np.searchsorted(codes[self.places], np.arange(len(self._keys) + 1))

    def codes(self, keys: pa.Array) -> I64:
        """The code of each key, ``NO_ROW`` for one that nobody asks for."""
        found = pc.index_in(keys, value_set=self._keys, skip_nulls=True)
        return _integers(found.fill_null(NO_ROW))


def _scan(
    history: History, fragment: ds.Fragment, columns: Sequence[str], size: int
) -> Iterator[pa.RecordBatch]:
    """The wanted rows of a file in the order that they have there, a few at a time."""
    scanner = fragment.scanner(
        schema=history.rows.schema,
        columns=list(columns),
        filter=history.where,
        batch_size=size,
        batch_readahead=1,
        fragment_readahead=1,
    )
    for batch in scanner.to_batches():
        if batch.num_rows:
            yield batch


def _gather(history: History, winners: I64, sizes: Sequence[int]) -> F64:
    """The features of each winner, ``NO_ROW`` without; ``sizes`` are the rows of each file."""
    values = np.full((len(winners), len(history.features)), np.nan)
    by_row = np.argsort(winners, kind="stable")
    rows = winners[by_row]
    first = 0
    for fragment, size in zip(history.rows.get_fragments(), sizes, strict=True):
        end = first + size
        if np.searchsorted(rows, first) == np.searchsorted(rows, end):
            first = end
            continue
        for batch in _scan(history, fragment, history.features, GATHER_ROWS):
            low, high = np.searchsorted(rows, (first, first + batch.num_rows))
            if low < high:
                picked = rows[low:high] - first
                for index, column in enumerate(batch.columns):
                    values[by_row[low:high], index] = _floats(column)[picked]
            first += batch.num_rows
    return values


def _integers(column: pa.Array) -> I64:
    return np.ascontiguousarray(column.to_numpy(zero_copy_only=False), np.int64)


def _floats(column: pa.Array) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


@kernel
def _is_newer(ranks: Ranks, row: int, others: Ranks, other: int) -> bool:
    for level in range(ranks.shape[1]):
        if ranks[row, level] != others[other, level]:
            return ranks[row, level] > others[other, level]  # type: ignore[no-any-return]  # numpy's bool
    return False


@batch_kernel
def _offer(
    begins: I64, at: I64, codes: I64, offered: Ranks, first: int, ranks: Ranks, winners: I64
) -> None:
    for row in range(len(codes)):
        code = codes[row]
        if code < 0:
            continue
        seen = max(offered[row, 0], offered[row, 1])
        low, end = begins[code], begins[code + 1]
        high = end
        while low < high:
            middle = (low + high) // 2
            if at[middle] < seen:
                low = middle + 1
            else:
                high = middle
        if low < end and _is_newer(offered, row, ranks, low):
            winners[low] = first + row
            for level in range(offered.shape[1]):
                ranks[low, level] = offered[row, level]


@batch_kernel
def _hand_down(begins: I64, ranks: Ranks, winners: I64) -> None:
    for code in range(len(begins) - 1):
        for place in range(begins[code] + 1, begins[code + 1]):
            if _is_newer(ranks, place - 1, ranks, place):
                winners[place] = winners[place - 1]
                for level in range(ranks.shape[1]):
                    ranks[place, level] = ranks[place - 1, level]
