"""A writer that is killed loses no row and writes none twice."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from deltalake import DeltaTable

from homeostat.common import topics
from homeostat.common.feature_store.offline import table_path
from homeostat.common.pipeline import Pipeline, Snapshot
from homeostat.features.settings import Settings

from .conftest import PARTITIONS, Start, Topics, vectors

pytestmark = pytest.mark.integration

PROGRAM = Path(__file__).with_name("writer_process.py")
COMMITS_EACH_SECOND = 30  # roughly: a kill within that time hits any step of one


@asynccontextmanager
async def killed_in_the_end(
    pipeline: Pipeline, settings: Settings, folder: Path
) -> AsyncIterator[None]:
    """A writer in a process of its own, killed when the context is left."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), *_written(pipeline, settings, folder)
    )
    try:
        yield
    finally:
        process.kill()
        await process.wait()


def _written(pipeline: Pipeline, settings: Settings, folder: Path) -> list[str]:
    snapshot_file, settings_file = folder / "snapshot", folder / "settings.json"
    snapshot_file.write_bytes(Snapshot(pipeline, 1).encode())
    settings_file.write_text(settings.model_dump_json())
    return [str(snapshot_file), str(settings_file)]


async def beyond(path: Path, version: int) -> None:
    """Until the table has a version after this one."""
    async with asyncio.timeout(60):
        while True:
            if DeltaTable.is_deltatable(str(path)) and DeltaTable(path).version() > version:
                return
            await asyncio.sleep(0.02)


async def send_forever(sender: Topics, sent: set[tuple[int, int]]) -> None:
    first = [0] * PARTITIONS
    while True:
        for partition in range(PARTITIONS):
            rows = range(first[partition], first[partition] + 5)
            await sender.send_vectors(
                vectors([f"{partition}:{row}" for row in rows], partition=partition, first=rows[0])
            )
            await sender.send(topics.EVENTS, b"{}", partition=partition)
            sent.update((partition, row) for row in rows)
            first[partition] += len(rows)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.chaos) for seed in range(1, 20))]
)
async def test_a_killed_writer_loses_no_row_and_doubles_none(
    seed: int,
    sender: Topics,
    start: Start,
    settings: Settings,
    pipeline: Pipeline,
    tmp_path: Path,
) -> None:
    random_delay = random.Random(seed)
    sent: set[tuple[int, int]] = set()
    path = table_path(settings.offline_store_path, pipeline.name, "vectors")
    hasty = settings.model_copy(
        update={
            "offline_flush_interval": timedelta(0),
            "offline_flush_bytes": 1,
            "offline_compact_every": 3,
            "session_timeout": timedelta(seconds=1),
        }
    )
    sending = asyncio.create_task(send_forever(sender, sent))
    try:
        version = -1
        for _ in range(2):
            async with killed_in_the_end(pipeline, hasty, tmp_path):
                await beyond(path, version + 2)
                await asyncio.sleep(random_delay.uniform(0, 3 / COMMITS_EACH_SECOND))
            version = DeltaTable(path).version()
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)

    async with start() as client:
        answer = (await client.post("/offline/commit")).json()

    stored = DeltaTable(path).to_pyarrow_dataset().to_table(["source_partition", "offset"])
    rows = list(zip(*(column.to_pylist() for column in stored.columns), strict=True))
    assert len(rows) == len(set(rows))
    assert sent <= set(rows)
    events = DeltaTable(table_path(settings.offline_store_path, pipeline.name, "events"))
    found = events.to_pyarrow_dataset().to_table(["partition", "offset"])
    assert found.num_rows == len(set(zip(*(c.to_pylist() for c in found.columns), strict=True)))
    assert answer["rows"] == answer["rows"] | {"vectors": len(rows), "events": found.num_rows}
