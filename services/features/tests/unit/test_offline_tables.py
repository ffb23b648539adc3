"""Rows and positions move together, or not at all."""

from __future__ import annotations

import os
import shutil
import time
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from homeostat.features.offline.tables import Displaced, OfflineTable, compact

SCHEMA = pa.schema({"id": pa.string()})
DAY = timedelta(days=1)


def open_table(folder: Path) -> OfflineTable:
    return OfflineTable.open(folder / "table", "p-events", schema=SCHEMA, retention=DAY)


def some(*ids: str) -> pa.Table:
    return pa.table({"id": list(ids)}, schema=SCHEMA)


def ids(folder: Path) -> list[str]:
    stored: list[str] = (
        DeltaTable(folder / "table").to_pyarrow_dataset().to_table().column("id").to_pylist()
    )
    return sorted(stored)


def test_a_commit_moves_the_positions_that_it_names(tmp_path: Path) -> None:
    table = open_table(tmp_path)

    table.append(some("a", "b"), start={0: None, 1: None}, end={0: 7, 1: 2})

    assert [open_table(tmp_path).position(partition) for partition in (0, 1, 2)] == [7, 2, None]
    assert (table.version, table.row_count) == (1, 2)


def test_a_zombie_adds_nothing(tmp_path: Path) -> None:
    open_table(tmp_path)
    zombie, successor = open_table(tmp_path), open_table(tmp_path)
    successor.append(some("a"), start={0: None}, end={0: 1})

    with pytest.raises(Displaced):
        zombie.append(some("a"), start={0: None}, end={0: 1})

    assert ids(tmp_path) == ["a"]


def test_a_zombie_that_looks_again_adds_nothing_either(tmp_path: Path) -> None:
    zombie, successor = open_table(tmp_path), open_table(tmp_path)
    successor.append(some("a"), start={0: None}, end={0: 1})
    zombie.refresh()

    with pytest.raises(Displaced, match="is at 1, expected None"):
        zombie.append(some("a"), start={0: None}, end={0: 1})


def test_writers_of_different_partitions_do_not_disturb_each_other(tmp_path: Path) -> None:
    one, other = open_table(tmp_path), open_table(tmp_path)

    one.append(some("a"), start={0: None}, end={0: 1})
    other.append(some("b"), start={1: None}, end={1: 1})

    assert ids(tmp_path) == ["a", "b"]


def test_merging_files_beside_a_writer_disturbs_nobody(tmp_path: Path) -> None:
    table = open_table(tmp_path)
    table.append(some("a"), start={0: None}, end={0: 1})
    table.append(some("b"), start={0: 1}, end={0: 2})

    compact(tmp_path / "table", retention=DAY)
    table.append(some("c"), start={0: 2}, end={0: 3})

    assert ids(tmp_path) == ["a", "b", "c"]
    assert len(DeltaTable(tmp_path / "table").file_uris()) == 2


def test_a_torn_commit_is_never_seen_and_cleaned_up_later(tmp_path: Path) -> None:
    table = open_table(tmp_path)
    table.append(some("a"), start={0: None}, end={0: 1})
    (whole,) = (tmp_path / "table").glob("*.parquet")
    torn = whole.with_name("part-00000-torn.parquet")  # written, but no commit names it
    shutil.copy(whole, torn)

    seen = ids(tmp_path)
    before = time.time() - 2 * DAY.total_seconds()
    os.utime(torn, (before, before))
    compact(tmp_path / "table", retention=DAY)

    assert seen == ids(tmp_path) == ["a"]
    assert not torn.exists()
