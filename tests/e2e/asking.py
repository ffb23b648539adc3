"""Somebody who asks the running system, and waits for what was published a moment ago."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from homeostat.cli.testing import RunningSystem

WAIT_SECONDS = 120


async def served(system: RunningSystem, pipeline: str, body: Any) -> dict[str, Any]:
    """The router's answer, once the pipeline and its champion have reached it."""
    return await until(system.url("router", f"/v1/pipelines/{pipeline}/predict"), body, status=200)


async def until(address: str, body: Any, *, status: int) -> dict[str, Any]:
    """Post until what was published a moment ago has arrived there."""
    async with httpx.AsyncClient(timeout=30) as http, asyncio.timeout(WAIT_SECONDS):
        while True:
            answer = await http.post(address, json=body)
            if answer.status_code == status:
                return dict(answer.json())
            assert answer.status_code in (404, 503), answer.text
            await asyncio.sleep(0.1)


@asynccontextmanager
async def asked_all_along(
    system: RunningSystem, pipeline: str, body: Any
) -> AsyncIterator[list[int]]:
    """Somebody who goes on asking for predictions, and the statuses of what was answered."""
    statuses: list[int] = []
    address = system.url("router", f"/v1/pipelines/{pipeline}/predict")

    async def ask() -> None:
        async with httpx.AsyncClient(timeout=30) as http:
            while True:
                statuses.append((await http.post(address, json=body)).status_code)
                await asyncio.sleep(0.05)

    asking = asyncio.create_task(ask())
    try:
        yield statuses
        assert not asking.done(), asking.exception()
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
