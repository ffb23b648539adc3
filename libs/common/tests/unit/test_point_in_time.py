"""The join in one pass gives what a search of every row for every instant gives."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.common.feature_store.point_in_time import History, KnownRows, known_rows

TIES = ("partition", "offset")


class Row(NamedTuple):
    key: str | None
    event_time: int
    available_at: int
    partition: int
    offset: int
    amount: float | None


def table_of(rows: list[Row]) -> pa.Table:
    columns = {name: [getattr(row, name) for row in rows] for name in Row._fields}
    types = [pa.string(), pa.int64(), pa.int64(), pa.int32(), pa.int64(), pa.float64()]
    return pa.table(columns, schema=pa.schema(list(zip(Row._fields, types, strict=True))))


def history_of(rows: ds.Dataset, **arguments: Any) -> History:
    return History(rows, key="key", features=["amount"], ties=TIES, **arguments)


def joined(
    rows: list[Row], asked: list[tuple[str | None, int]], *, max_age: int | None = None
) -> KnownRows:
    keys = pa.array([key for key, _ in asked], pa.string())
    at = np.array([instant for _, instant in asked], np.int64)
    return known_rows(history_of(ds.dataset(table_of(rows))), keys, at, max_age=max_age)


def found_by_search(
    rows: list[Row], key: str | None, at: int, max_age: int | None
) -> tuple[int, float]:
    known = [row for row in rows if row.key == key and max(row[1:3]) <= at]
    newest = max(known, key=lambda row: row[1:5], default=None)
    if key is None or newest is None or (max_age is not None and newest.event_time < at - max_age):
        return KnownRows.NEVER, np.nan
    return newest.event_time, np.nan if newest.amount is None else newest.amount


KEYS = st.sampled_from(["a", "b", "c", None])
TIMES = st.integers(0, 12)
ROWS = st.lists(
    st.builds(
        Row,
        key=KEYS,
        event_time=TIMES,
        available_at=TIMES,
        partition=st.integers(0, 1),
        offset=st.integers(0, 1_000_000),
        amount=st.one_of(st.none(), st.floats(-9, 9)),
    ),
    max_size=40,
    unique_by=lambda row: (row.partition, row.offset),
)


@settings(max_examples=300, deadline=None)
@given(
    rows=ROWS,
    asked=st.lists(st.tuples(KEYS, TIMES), max_size=20),
    max_age=st.one_of(st.none(), st.integers(0, 6)),
)
def test_every_instant_gets_what_a_search_of_all_rows_finds(
    rows: list[Row], asked: list[tuple[str | None, int]], max_age: int | None
) -> None:
    known = joined(rows, asked, max_age=max_age)

    expected = [found_by_search(rows, key, at, max_age) for key, at in asked]
    assert known.event_times.tolist() == [event_time for event_time, _ in expected]
    np.testing.assert_array_equal(known.values[:, 0], [amount for _, amount in expected])


def test_a_row_that_came_late_does_not_hide_a_newer_one() -> None:
    rows = [Row("a", 10, 11, 0, 0, 1.0), Row("a", 5, 20, 0, 1, 2.0)]

    assert joined(rows, [("a", 25)]).values[0, 0] == 1.0


def test_what_was_not_yet_available_does_not_appear() -> None:
    rows = [Row("a", 10, 30, 0, 0, 1.0)]

    known = joined(rows, [("a", 29), ("a", 30)])

    assert known.is_known.tolist() == [False, True]
    np.testing.assert_array_equal(known.values[:, 0], [np.nan, 1.0])


@pytest.mark.parametrize("seed", range(3))
def test_files_and_their_order_have_no_say(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    rows = [
        Row(f"k{chance.randrange(50)}", chance.randrange(300), chance.randrange(300), 0, n, n * 1.0)
        for n in range(5_000)
    ]
    keys = pa.array([f"k{chance.randrange(60)}" for _ in range(500)])
    at = np.array([chance.randrange(400) for _ in range(500)], np.int64)
    expected = known_rows(history_of(ds.dataset(table_of(rows))), keys, at)
    chance.shuffle(rows)
    for number in range(5):
        part = table_of(rows[number * 1_000 : (number + 1) * 1_000])
        pq.write_table(part, tmp_path / f"{number}.parquet", row_group_size=137)

    known = known_rows(history_of(ds.dataset(tmp_path)), keys, at)

    assert known.event_times.tolist() == expected.event_times.tolist()
    np.testing.assert_array_equal(known.values, expected.values)


def test_only_rows_that_are_wanted_take_part() -> None:
    rows = ds.dataset(table_of([Row("a", 1, 1, 0, 0, 1.0), Row("a", 2, 2, 1, 0, 2.0)]))
    history = history_of(rows, where=ds.field("partition") == 0)

    assert known_rows(history, pa.array(["a"]), np.array([9])).values[0, 0] == 1.0


def test_nothing_is_known_of_an_empty_history() -> None:
    assert not joined([], [("a", 1), (None, 2)]).is_known.any()
