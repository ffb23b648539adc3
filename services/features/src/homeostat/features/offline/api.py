"""HTTP: what the offline store holds, and asking it to hold everything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter

from homeostat.features.offline.writer import TableReport
from homeostat.features.offline.writers import Writers


def routes(writers: Callable[[], Writers]) -> APIRouter:
    router = APIRouter(prefix="/v1/pipelines/{pipeline}/offline", tags=["offline store"])

    @router.post("/commit")
    async def commit(pipeline: str) -> dict[str, Any]:
        """Table versions that hold everything which was on the topics when this was asked."""
        return _summary(await writers().of(pipeline).commit())

    @router.get("")
    async def tables(pipeline: str) -> dict[str, Any]:
        """The tables as they are; positions are those of the partitions of this replica."""
        reports = await writers().of(pipeline).report()
        return _summary(reports) | {
            "positions": {name: each.positions for name, each in reports.items()},
            "buffered_bytes": {name: each.buffered_bytes for name, each in reports.items()},
        }

    return router


def _summary(reports: Mapping[str, TableReport]) -> dict[str, Any]:
    return {
        "versions": {name: each.version for name, each in reports.items()},
        "rows": {name: each.rows for name, each in reports.items()},
    }
