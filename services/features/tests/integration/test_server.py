"""The features server and its workers: they end with it, however it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from homeostat.cli.publishing import publish
from homeostat.cli.testing import ServiceProcess, SessionStack, StoppableRedis, running_service

from .conftest import Rig

pytestmark = pytest.mark.integration
PATIENCE_SECONDS = 120


@pytest.fixture(autouse=True)
def published(rig: Rig, stack: SessionStack) -> Iterator[None]:
    """One pipeline, and no other, for as long as the test lasts."""
    asyncio.run(publish(rig.pipeline, bootstrap_servers=stack.kafka))
    yield
    stack.retire_pipelines()


async def workers(server: ServiceProcess) -> list[psutil.Process]:
    """The server's worker processes, once it is ready."""
    async with httpx.AsyncClient(base_url=server.url) as client, asyncio.timeout(PATIENCE_SECONDS):
        while True:
            if (await client.get("/readyz")).status_code == 200:
                return psutil.Process(server.process.pid).children()
            await asyncio.sleep(0.1)


@contextmanager
def features_server(stack: SessionStack, folder: Path, **env: str) -> Iterator[ServiceProcess]:
    with running_service(
        "homeostat.features",
        stack,
        folder,
        port_variable="FEATURES_PORT",
        env={"FEATURES_GRPC_PORT": "0", **env},
    ) as server:
        yield server


def wait_for_line(server: ServiceProcess, words: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while words not in server.log.read_text():
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.1)


async def assert_end_with(server: ServiceProcess, running: list[psutil.Process]) -> None:
    assert len(running) == 1  # of the pipelines that are gone, none was started
    server.kill()
    _, alive = await asyncio.to_thread(psutil.wait_procs, running, PATIENCE_SECONDS)
    assert alive == []


async def test_a_killed_server_leaves_no_worker_behind(stack: SessionStack, tmp_path: Path) -> None:
    with features_server(stack, tmp_path) as server:
        await assert_end_with(server, await workers(server))


async def test_nor_one_that_still_waits_for_its_store(stack: SessionStack, tmp_path: Path) -> None:
    with features_server(stack, tmp_path, REDIS_URL=StoppableRedis().url) as server:
        await asyncio.to_thread(wait_for_line, server, "store unavailable")
        await assert_end_with(server, psutil.Process(server.process.pid).children())
