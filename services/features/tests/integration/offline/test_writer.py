"""The offline store on a real Kafka: what was sent is in the tables, once, when a commit says."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from homeostat.common import topics
from homeostat.common.feature_store.offline import TABLES, table_path
from homeostat.common.pipeline import Pipeline
from homeostat.common.schemas.labels import Outcome
from homeostat.features.settings import Settings

from .conftest import Start, Topics, prediction, vectors

pytestmark = pytest.mark.integration
EMPTY = dict.fromkeys(TABLES, 0)


def read(
    settings: Settings, pipeline: Pipeline, table: str, version: int | None = None
) -> pa.Table:
    path = table_path(settings.offline_store_path, pipeline.name, table)
    return DeltaTable(path, version=version).to_pyarrow_dataset().to_table()


async def eventually(
    client: httpx.AsyncClient, holds: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """The store's report, once it says so."""
    async with asyncio.timeout(30):
        while True:
            report: dict[str, Any] = (await client.get("/offline")).json()
            if holds(report):
                return report
            await asyncio.sleep(0.01)


def files(path: Path) -> int:
    return len(DeltaTable(path).file_uris())


async def test_a_commit_holds_all_that_was_sent_before_it(
    sender: Topics, start: Start, settings: Settings, pipeline: Pipeline
) -> None:
    outcome = Outcome("a", 1.0, event_time=5, available_at=9, entities={"card": "c1"}, version=2)
    rows = [prediction(name) for name in ("a", "b", "c")]
    await sender.send(topics.EVENTS, b'{"id": "a"}', partition=1, available_at=77)
    await sender.send(topics.EVENTS, b"\xff\xfe", partition=1)
    await sender.send_vectors(vectors(["a", "b"], partition=2, first=10))
    await sender.send_outcome(outcome, partition=3)
    await sender.send_predictions(rows)

    async with start() as client:
        answer = (await client.post("/offline/commit")).json()

    assert answer["rows"] == {**EMPTY, "events": 2, "vectors": 2, "outcomes": 1, "predictions": 3}
    versions = answer["versions"]
    events = read(settings, pipeline, "events", versions["events"]).to_pylist()
    assert [
        {name: row[name] for name in ("value", "key", "partition", "offset", "available_at")}
        for row in events
    ] == [
        {"value": '{"id": "a"}', "key": "k", "partition": 1, "offset": 0, "available_at": 77},
        {"value": None, "key": "k", "partition": 1, "offset": 1, "available_at": None},
    ]
    stored = read(settings, pipeline, "vectors", versions["vectors"])
    sent = vectors(["a", "b"], partition=2, first=10).table()
    assert stored.select(["id", "value:ratio", "event_time", "offset"]).to_pylist() == (
        sent.select(["id", "value:ratio", "event_time", "offset"]).to_pylist()
    )
    assert (
        stored.select(["definition_hash", "source_partition", "is_replayed"]).to_pylist()
        == [{"definition_hash": "d" * 64, "source_partition": 2, "is_replayed": True}] * 2
    )
    (found,) = read(settings, pipeline, "outcomes", versions["outcomes"]).to_pylist()
    assert (found["id"], found["label"], found["version"]) == ("a", 1.0, 2)
    assert found["entities"] == [("card", "c1")]
    ledger = read(settings, pipeline, "predictions", versions["predictions"]).to_pylist()
    assert [row["prediction_id"] for row in ledger] == [row.prediction_id for row in rows]
    assert ledger[0]["vector"] == [1.0, None]
    assert ledger[0]["statuses"] == [0, 2]


async def test_nothing_new_makes_no_version_and_is_answered_at_once(
    sender: Topics, start: Start
) -> None:
    await sender.send_vectors(vectors(["a"]))

    async with start() as client:
        first = (await client.post("/offline/commit")).json()
        began = time.monotonic()
        again = (await client.post("/offline/commit")).json()
        seconds = time.monotonic() - began

    assert again == first
    assert seconds < 2  # the figure is 0.1; this only tells an answer from a flush interval


async def test_calls_at_the_same_time_share_one_commit(sender: Topics, start: Start) -> None:
    async with start() as client:
        before = (await client.post("/offline/commit")).json()["versions"]
        for name in "abc":
            await sender.send_vectors(vectors([name]))
        answers = await asyncio.gather(*(client.post("/offline/commit") for _ in range(8)))

    versions = {answer.json()["versions"]["vectors"] for answer in answers}
    assert versions == {before["vectors"] + 1}
    assert all(answer.json()["rows"]["vectors"] == 3 for answer in answers)


async def test_stopping_commits_what_was_taken_in(
    sender: Topics, start: Start, settings: Settings, pipeline: Pipeline
) -> None:
    async with start() as client:
        await client.post("/offline/commit")  # the writer reads now
        await sender.send_vectors(vectors(["a"]))
        await eventually(client, lambda report: report["buffered_bytes"]["vectors"] > 0)

    assert read(settings, pipeline, "vectors").column("id").to_pylist() == ["a"]


async def test_rows_that_are_old_are_committed_without_being_asked(
    sender: Topics, start: Start
) -> None:
    async with start(offline_flush_interval=timedelta(milliseconds=300)) as client:
        await sender.send_vectors(vectors(["a"]))
        report = await eventually(client, lambda report: report["rows"]["vectors"] > 0)

    assert report["positions"]["vectors"] == {"0": 1, "1": 0, "2": 0, "3": 0}


async def test_a_writer_that_starts_again_goes_on_where_the_table_stands(
    sender: Topics, start: Start
) -> None:
    await sender.send_vectors(vectors(["a"]))
    async with start() as client:
        await client.post("/offline/commit")
    await sender.send_vectors(vectors(["b"], first=1))

    async with start() as client:
        answer = (await client.post("/offline/commit")).json()

    assert answer["rows"]["vectors"] == 2


async def test_new_features_add_columns_and_old_rows_have_nulls_there(
    sender: Topics, start: Start, settings: Settings, pipeline: Pipeline
) -> None:
    await sender.send_vectors(vectors(["a"]))
    async with start() as client:
        await client.post("/offline/commit")
        changed = vectors(["b"], features=("ratio", "added"), definition_hash="e" * 64)
        await sender.send_vectors(changed)
        await client.post("/offline/commit")

    columns = ["id", "value:amount_mean", "value:ratio", "value:added", "definition_hash"]
    rows = read(settings, pipeline, "vectors").select(columns).sort_by("id").to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("a", 1.5, 1.5, None, "d" * 64),
        ("b", None, 1.5, 1.5, "e" * 64),
    ]


async def test_small_files_are_merged_and_old_versions_stay_readable(
    sender: Topics, start: Start, settings: Settings, pipeline: Pipeline
) -> None:
    versions = []
    async with start(offline_compact_every=3) as client:
        for number in range(7):
            await sender.send_vectors(vectors([str(number)], first=number))
            answer = await client.post("/offline/commit")
            versions.append(answer.json()["versions"]["vectors"])

    assert files(table_path(settings.offline_store_path, pipeline.name, "vectors")) < 7
    assert read(settings, pipeline, "vectors", versions[1]).num_rows == 2
    assert read(settings, pipeline, "vectors").num_rows == 7


async def test_an_unreadable_record_is_counted_and_passed(sender: Topics, start: Start) -> None:
    await sender.send(topics.OUTCOMES, b"not json")
    await sender.send(topics.FEATURES, b"not arrow")
    await sender.send(topics.PREDICTIONS, b"{}")
    await sender.send_vectors(vectors(["a"]))

    async with start() as client:
        answer = (await client.post("/offline/commit")).json()
        again = (await client.post("/offline/commit")).json()

    assert answer["rows"] == {**EMPTY, "vectors": 1}
    assert again == answer


async def test_a_topic_full_of_unreadable_records_stops_the_writer_with_the_reason(
    sender: Topics, start: Start
) -> None:
    for _ in range(20):
        await sender.send(topics.OUTCOMES, b"not json")

    async with start() as client:
        answer = await client.post("/offline/commit")

    assert answer.status_code == 503
    assert "unreadable" in answer.json()["detail"]


async def test_an_unknown_pipeline_is_not_found(start: Start) -> None:
    async with start() as client:
        answer = await client.post("http://features/v1/pipelines/nothing/offline/commit")

    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


async def test_without_kafka_a_commit_is_refused_for_now(start: Start) -> None:
    async with start(kafka_bootstrap_servers="127.0.0.1:9") as client:
        answer = await client.post("/offline/commit")

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")


async def test_two_replicas_share_the_partitions_and_write_each_row_once(
    sender: Topics, start: Start, settings: Settings, pipeline: Pipeline
) -> None:
    brief: dict[str, Any] = {"offline_flush_interval": timedelta(milliseconds=200)}
    async with start(**brief) as one, start(**brief) as other:
        for number in range(40):
            batch = vectors([str(number)], partition=number % 4, first=number // 4)
            await sender.send_vectors(batch)
            await sender.send(topics.EVENTS, json.dumps({"id": number}).encode())
        answers = [await client.post("/offline/commit") for client in (one, other)]

    assert [answer.json()["rows"]["vectors"] for answer in answers] == [40, 40]
    ids = read(settings, pipeline, "vectors").column("id").to_pylist()
    assert sorted(map(int, ids)) == list(range(40))
