"""Predictions and outcomes joined by event id, in slices of event time.

A slice holds one compact row an event, sorted by the event's hash. Whichever comes first,
prediction or label, makes the row; the other completes it. A slice never grows beyond
``SLICE_ROWS``: from then on it keeps a uniform sample by hash, the same for predictions and
labels, so what is measured on it stays unbiased.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from homeostat.drift.columns import Array, Outcomes, Predictions

SLICE_ROWS = 20_000
NO_VERSION = -1
ROW = np.dtype(
    [
        ("key", "<u8"),
        ("score", "<f4"),
        ("label", "<f4"),  # NaN: none yet
        ("version", "<i4"),  # NO_VERSION: no prediction yet
        ("correction", "<u2"),
        ("decision", "i1"),
    ]
)
Rows = np.ndarray[tuple[int], np.dtype[Any]]


def is_kept(keys: Array, halvings: int) -> Array:
    """Which keys a slice keeps that was halved so often: those below ``2**64 >> halvings``."""
    if halvings == 0:
        return np.ones(len(keys), bool)
    return np.asarray(keys >> np.uint64(64 - halvings) == 0)


@dataclass(frozen=True)
class Slice:
    """The events of one stretch of event time, or a sample of them (``is_kept``)."""

    rows: Rows
    halvings: int = 0

    def keeps(self, keys: Array) -> Array:
        return is_kept(keys, self.halvings)

    def lookup(self, keys: Array) -> tuple[Array, Array]:
        """Where each key is or would be, and whether it is there."""
        places = np.searchsorted(self.rows["key"], keys)
        found = np.zeros(len(keys), bool)
        inside = places < len(self.rows)
        found[inside] = self.rows["key"][places[inside]] == keys[inside]
        return places, found

    def inserted(self, rows: Rows) -> Slice:
        """With new rows, whose keys are sorted, distinct and not in it yet."""
        places, _ = self.lookup(rows["key"])
        return Slice(np.insert(self.rows, places, rows), self.halvings).thinned()

    def thinned(self) -> Slice:
        rows, halvings = self.rows, self.halvings
        while len(rows) > SLICE_ROWS:
            halvings += 1
            rows = rows[is_kept(rows["key"], halvings)]
        return Slice(rows, halvings)


EMPTY = Slice(np.zeros(0, ROW))
Slices = Mapping[int, Slice]  # by event time // width


def add_predictions(
    slices: Slices, predictions: Predictions, *, width: int, oldest: int
) -> tuple[dict[int, Slice], Array]:
    """Join predictions; also says which rows are the first of their event.

    A row scored twice (again after a crash, or asked for twice) counts once. Rows without an
    event, and those older than slice ``oldest``, are not joined and count as first.
    """
    joined = dict(slices)
    first = np.ones(len(predictions), bool)
    place = predictions.event_time // width
    candidates = predictions.is_joinable & (place >= oldest)
    for number in np.unique(place[candidates]):
        rows = np.flatnonzero(candidates & (place == number))
        current = joined.get(int(number), EMPTY)
        rows = rows[current.keeps(predictions.key[rows])]
        _, distinct = np.unique(predictions.key[rows], return_index=True)
        first[np.delete(rows, distinct)] = False
        rows = rows[distinct]  # sorted by key
        joined[int(number)], again = _predicted(current, predictions, rows)
        first[rows[again]] = False
    return joined, first


def _predicted(current: Slice, predictions: Predictions, rows: Array) -> tuple[Slice, Array]:
    places, found = current.lookup(predictions.key[rows])
    kept = current.rows.copy()
    again = np.zeros(len(rows), bool)
    again[found] = kept["version"][places[found]] != NO_VERSION
    waiting = found & ~again
    _write_prediction(kept, places[waiting], predictions, rows[waiting])
    new = np.zeros(int((~found).sum()), ROW)
    new["key"] = predictions.key[rows[~found]]
    new["label"] = np.nan
    _write_prediction(new, np.arange(len(new)), predictions, rows[~found])
    return Slice(kept, current.halvings).inserted(new), again


def _write_prediction(target: Rows, places: Array, predictions: Predictions, rows: Array) -> None:
    target["score"][places] = predictions.score[rows]
    target["version"][places] = predictions.version[rows]
    target["decision"][places] = predictions.decision[rows]


def add_outcomes(
    slices: Slices, outcomes: Outcomes, *, width: int, oldest: int
) -> tuple[dict[int, Slice], int]:
    """Join labels; the newest correction of an event holds. Also counts those that came too late
    to be used."""
    joined = dict(slices)
    place = outcomes.event_time // width
    for number in np.unique(place[place >= oldest]):
        rows = np.flatnonzero(place == number)
        current = joined.get(int(number), EMPTY)
        rows = rows[current.keeps(outcomes.key[rows])]
        order = rows[np.lexsort((outcomes.correction[rows], outcomes.key[rows]))]
        keys = outcomes.key[order]
        rows = order[np.append(keys[1:] != keys[:-1], True)] if len(order) else order
        joined[int(number)] = _labelled(current, outcomes, rows)
    return joined, int((place < oldest).sum())


def _labelled(current: Slice, outcomes: Outcomes, rows: Array) -> Slice:
    places, found = current.lookup(outcomes.key[rows])
    kept = current.rows.copy()
    newer = found.copy()
    newer[found] = outcomes.correction[rows[found]] >= kept["correction"][places[found]]
    kept["label"][places[newer]] = outcomes.label[rows[newer]]
    kept["correction"][places[newer]] = outcomes.correction[rows[newer]]
    new = np.zeros(int((~found).sum()), ROW)
    new["key"] = outcomes.key[rows[~found]]
    new["label"] = outcomes.label[rows[~found]]
    new["correction"] = outcomes.correction[rows[~found]]
    new["version"] = NO_VERSION
    new["decision"] = -1
    return Slice(kept, current.halvings).inserted(new)


def mature_rows(
    slices: Slices, *, first: int, last: int, version: int, absent: float | None
) -> Rows:
    """Scored rows of a version in slices ``first..last``, each with a label.

    ``absent`` stands for a label that never came; ``None`` leaves such events out.
    """
    parts = [slices[number].rows for number in range(first, last + 1) if number in slices]
    if not parts:
        return EMPTY.rows
    rows: Rows = np.concatenate(parts)
    rows = rows[(rows["version"] == version) & (rows["decision"] >= 0) & ~np.isnan(rows["score"])]
    if absent is None:
        return np.asarray(rows[~np.isnan(rows["label"])])
    rows["label"] = np.where(np.isnan(rows["label"]), absent, rows["label"])
    return rows
