"""Accepted events as columns: what folds, expressions and hops work on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.intp]
F64 = np.ndarray[tuple[int], np.dtype[np.float64]]
I64 = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True)
class EventColumns:
    """Events as columns.

    ``numbers[name]`` is NaN for null; a category is the index of its value.
    """

    ids: list[str]
    times: I64  # epoch ms
    strings: Mapping[str, list[str | None]]
    numbers: Mapping[str, F64]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Rows) -> EventColumns:
        """The chosen events, in the order given."""
        picked = rows.tolist()
        return EventColumns(
            [self.ids[row] for row in picked],
            self.times[rows],
            {name: [texts[row] for row in picked] for name, texts in self.strings.items()},
            {name: column[rows] for name, column in self.numbers.items()},
        )

    @classmethod
    def joined(cls, parts: Sequence[EventColumns]) -> EventColumns:
        """One after another; all of one contract, and at least one."""
        first = parts[0]
        return cls(
            list(chain.from_iterable(part.ids for part in parts)),
            np.concatenate([part.times for part in parts]),
            {
                name: list(chain.from_iterable(part.strings[name] for part in parts))
                for name in first.strings
            },
            {
                name: np.concatenate([part.numbers[name] for part in parts])
                for name in first.numbers
            },
        )


def recoded(column: F64, was: Sequence[str], now: Sequence[str]) -> F64:
    """A column of categories under another list of their values; one that it lacks is null.

    >>> recoded(np.array([0, 1, np.nan]), ["web", "app"], ["pos", "web"]).tolist()
    [1.0, nan, nan]
    """
    if list(was) == list(now):
        return column
    index = {value: float(place) for place, value in enumerate(now)}
    places = np.array([*(index.get(value, np.nan) for value in was), np.nan])
    return places[np.nan_to_num(column, nan=-1).astype(np.intp)]


def event_hash(event_id: str) -> int:
    """A stable 64-bit identity of an event id, as the fold remembers it."""
    return int.from_bytes(hashlib.blake2b(event_id.encode(), digest_size=8).digest(), "little")


def event_hashes(ids: Sequence[str]) -> NDArray[np.uint64]:
    """`event_hash` of a column."""
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids]
    return np.frombuffer(bytearray().join(digests), "<u8")
