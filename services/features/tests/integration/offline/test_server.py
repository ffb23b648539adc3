"""The offline writers inside the features server: from a snapshot on the topic to SIGTERM."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from deltalake import DeltaTable

from homeostat.cli.testing import SessionStack, running_service
from homeostat.common import kafka, topics
from homeostat.common.feature_store.offline import table_path
from homeostat.common.pipeline import Pipeline, Snapshot

from .conftest import Topics, vectors

pytestmark = pytest.mark.integration


async def apply(stack: SessionStack, pipeline: Pipeline) -> None:
    await kafka.ensure_topics(stack.kafka, [(topics.PIPELINES.of(), topics.PIPELINES)])
    async with kafka.producer(stack.kafka, client_id="tests") as producer:
        await producer.send_and_wait(
            topics.PIPELINES.of(), Snapshot(pipeline, 1).encode(), key=pipeline.name.encode()
        )


async def committed(client: httpx.AsyncClient, pipeline: Pipeline) -> dict[str, dict[str, int]]:
    """The answer to a commit, once the server knows the pipeline and its writer is ready."""
    async with asyncio.timeout(200):
        while True:
            response = await client.post(f"/v1/pipelines/{pipeline.name}/offline/commit")
            if response.status_code == 200:
                answer: dict[str, dict[str, int]] = response.json()
                return answer
            assert response.status_code in (404, 503), response.text
            await asyncio.sleep(0.1)


async def taken_in(client: httpx.AsyncClient, pipeline: Pipeline) -> None:
    """Until vectors wait in memory."""
    async with asyncio.timeout(30):
        while True:
            report = (await client.get(f"/v1/pipelines/{pipeline.name}/offline")).json()
            if report["buffered_bytes"]["vectors"]:
                return
            await asyncio.sleep(0.02)


async def test_a_server_that_is_told_to_stop_commits_first(
    stack: SessionStack, pipeline: Pipeline, sender: Topics, tmp_path: Path
) -> None:
    await apply(stack, pipeline)
    with running_service(
        "homeostat.features",
        stack,
        tmp_path,
        port_variable="FEATURES_PORT",
        env={"FEATURES_GRPC_PORT": "0"},
    ) as service:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
            before = await committed(client, pipeline)
            await sender.send_vectors(vectors(["a", "b"]))
            await taken_in(client, pipeline)
        status = await asyncio.to_thread(service.stop)

    table = DeltaTable(table_path(tmp_path / "offline", pipeline.name, "vectors"))
    assert status == 0
    assert table.version() == before["versions"]["vectors"] + 1
    assert table.to_pyarrow_dataset().to_table().column("id").to_pylist() == ["a", "b"]
