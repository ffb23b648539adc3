"""Streamed, backfilled, merged or read online: the same events give the same bits."""

from datetime import timedelta
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from homeostat.common.windows import (
    AggregateFeature,
    EntityFold,
    Events,
    State,
    parse_aggregate,
    parse_window,
)

NOON = 1_700_000_000_000
LATENESS = timedelta(minutes=5)
FEATURES = (
    ("count()", "sliding 1h"),
    ("mean(amount)", "sliding 30m"),
    ("sum(amount)", "tumbling 5m"),
    ("max(amount)", "hopping 1h every 15m"),
    ("std(amount)", "sliding 6h"),
    ("min(amount)", "session 20m"),
    ("mean(amount)", "decay 1h"),
    ("last(amount)", "lifetime"),
    ("distinct(shop)", "sliding 1d"),
    ("quantile(amount, 0.9)", "sliding 1d"),
)


class Log(NamedTuple):
    """Events in the order of their arrival, which is not that of their times."""

    keys: NDArray[np.int32]
    times: NDArray[np.int64]
    amounts: NDArray[np.float64]
    shops: NDArray[np.uint64]

    def events(self, fold: EntityFold, rows: NDArray[np.intp]) -> Events:
        ids = (rows + 1).astype(np.uint64)
        columns = {"amount": self.amounts[rows], "shop": self.shops[rows]}
        return fold.events(self.times[rows], ids, columns)


def log_of(count: int, *, keys: int) -> Log:
    chance = np.random.default_rng(count)
    arrivals = NOON + np.sort(chance.integers(0, 86_400_000, count))
    late = np.where(chance.random(count) < 0.3, chance.integers(0, 300_000, count), 0)
    return Log(
        (chance.random(count) ** 1.5 * keys).astype(np.int32),  # some pay more often
        arrivals - late,
        np.where(chance.random(count) < 0.02, np.nan, chance.integers(0, 100_000, count) / 100),
        chance.integers(1, 400, count).astype(np.uint64),
    )


class Folded(NamedTuple):
    state: State
    values: NDArray[np.float64]
    statuses: NDArray[np.uint8]


def fresh(fold: EntityFold, keys: int) -> State:
    state = fold.new_state()
    state.intern([f"k{number}" for number in range(keys)])
    return state


def streamed(fold: EntityFold, log: Log, keys: int, *, at_once: int) -> Folded:
    """In batches, with a worker that dies and restores its rows between some of them."""
    state = fresh(fold, keys)
    values, statuses = [], []
    for number, first in enumerate(range(0, len(log.keys), at_once)):
        rows = np.arange(first, min(first + at_once, len(log.keys)))
        folded = fold.fold_events(state, log.keys[rows], log.events(fold, rows))
        values.append(folded.values)
        statuses.append(folded.statuses)
        if number % 7 == 3:
            seen = np.unique(log.keys[: rows[-1] + 1])
            packed, state = fold.pack(state, seen), fresh(fold, keys)
            fold.unpack(state, seen, packed)
    return Folded(state, np.concatenate(values), np.concatenate(statuses))


def read_online(fold: EntityFold, log: Log, keys: int) -> Folded:
    """Each event scored just before it is folded, from the packed row of its key."""
    state = fresh(fold, keys)
    shape = (len(log.keys), len(FEATURES))
    values, statuses = np.empty(shape), np.empty(shape, np.uint8)
    order = np.argsort(log.keys, kind="stable")
    begins = np.searchsorted(log.keys[order], np.arange(keys))
    turn = np.empty(len(log.keys), np.int64)  # the how manieth of its key
    turn[order] = np.arange(len(order)) - begins[log.keys[order]]
    by_turn = np.argsort(turn, kind="stable")
    for number, rows in enumerate(np.split(by_turn, np.flatnonzero(np.diff(turn[by_turn])) + 1)):
        events, numbers = log.events(fold, rows), log.keys[rows]
        packed = fold.pack(state, numbers) if number else [None] * len(rows)
        read = fold.read(packed, log.times[rows], events)
        values[rows], statuses[rows] = read.values, read.statuses
        fold.fold_events(state, numbers, events)
    return Folded(state, values, statuses)


def merged(fold: EntityFold, log: Log, keys: int) -> State:
    """Two halves of the log, each folded by somebody else."""
    every, half = np.arange(keys, dtype=np.int32), len(log.keys) // 2
    states = []
    for rows in (np.arange(half), np.arange(half, len(log.keys))):
        states.append(fresh(fold, keys))
        fold.fold_events(states[-1], log.keys[rows], log.events(fold, rows))
    fold.merge(states[1], every, states[0], every)
    return states[1]


@pytest.mark.parametrize(
    "count",
    [20_000, pytest.param(1_000_000, marks=[pytest.mark.chaos, pytest.mark.timeout(1_200)])],
)
def test_every_path_gives_the_same_bits(count: int) -> None:
    keys = count // 20
    features = [
        AggregateFeature(f"f{number}", parse_aggregate(aggregate), parse_window(window))
        for number, (aggregate, window) in enumerate(FEATURES)
    ]
    scales = {"amount": 0.01}
    fold = EntityFold("card", features, scales=scales, texts={"shop"}, lateness=LATENESS)
    log = log_of(count, keys=keys)
    every = np.unique(log.keys)

    stream = streamed(fold, log, keys, at_once=997)
    backfill = streamed(fold, log, keys, at_once=count)
    online = read_online(fold, log, keys)

    rows = fold.pack(stream.state, every)
    assert fold.pack(backfill.state, every) == rows
    assert fold.pack(online.state, every) == rows
    assert fold.pack(merged(fold, log, keys), every) == rows
    for other in (backfill, online):
        assert other.values.tobytes() == stream.values.tobytes()
        assert other.statuses.tobytes() == stream.statuses.tobytes()
    assert np.isfinite(stream.values).mean() > 0.5
