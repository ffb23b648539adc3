"""HTTP of the stream's side: where its partitions stand."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from redis.asyncio import Redis

from homeostat.common.kafka import Installation
from homeostat.features.progress import read_progress
from homeostat.features.workers import Workers


def routes(workers: Callable[[], Workers], redis: Callable[[], Redis]) -> APIRouter:
    router = APIRouter(prefix="/v1/pipelines/{pipeline}", tags=["stream"])
    partitions = Installation.from_environment().partitions

    @router.get("/progress")
    async def progress(pipeline: str) -> dict[str, object]:
        """Next offset of every input partition: below it, all is done and acknowledged."""
        return await read_progress(redis(), workers().view(pipeline), partitions=partitions)

    return router
