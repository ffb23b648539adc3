"""HTTP: runs, versions, approval, progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, ConfigDict, Field

from homeostat.common.clock import Clock, PipelineClock
from homeostat.common.errors import Conflict, NotFound, unknown_pipeline
from homeostat.common.http import StorableText
from homeostat.common.pipeline import Snapshot
from homeostat.common.schemas.models import VersionState
from homeostat.trainer.consumer import start_by_hand
from homeostat.trainer.store import Registered, Run, Store

MAX_RUNS = 200
VersionNumber = Annotated[int, Path(ge=1, le=2**31 - 1)]  # as the table keeps it


@dataclass(frozen=True)
class Desk:
    """What the routes need."""

    store: Store
    pipelines: Mapping[str, Snapshot]
    is_informed: Callable[[], bool]  # whether the pipelines are known at all
    clock: Clock
    wake: Callable[[str], None]


class StartRun(BaseModel):
    model_config = ConfigDict(extra="forbid")

    cause: StorableText = Field(default="by hand", min_length=1, max_length=500)


class Approval(BaseModel):
    """Who takes responsibility, and why."""

    model_config = ConfigDict(extra="forbid")

    by: StorableText = Field(min_length=1, max_length=200)
    comment: StorableText = Field(default="", max_length=2000)


def routes(desk: Callable[[], Desk]) -> APIRouter:
    """The routes; ``desk`` gives what lives as long as the application."""
    router = APIRouter(prefix="/v1/pipelines/{pipeline}", tags=["training"])

    @router.post("/runs", status_code=202, summary="Start a training run by hand")
    async def start(pipeline: str, body: StartRun | None = None) -> Response:
        service = desk()
        snapshot = _snapshot(service, pipeline)
        cause = (body or StartRun()).cause
        run = await start_by_hand(service.store, snapshot, cause, wall=service.clock)
        service.wake(pipeline)
        return _json(run.document(), status_code=202)

    @router.get("/runs", summary="The latest runs, newest first")
    async def runs(pipeline: str, limit: int = 50) -> Response:
        service = desk()
        _snapshot(service, pipeline)
        async with service.store.transaction() as transaction:
            found = await transaction.runs(pipeline, limit=max(1, min(limit, MAX_RUNS)))
        return _json({"runs": [run.document() for run in found]})

    @router.get("/runs/{run_id}", summary="One run with its evidence")
    async def one_run(pipeline: str, run_id: StorableText) -> Response:
        service = desk()
        _snapshot(service, pipeline)
        async with service.store.transaction() as transaction:
            run = await transaction.run(pipeline, run_id)
        if run is None:
            raise NotFound(f"{pipeline!r} has no run {run_id!r}")
        return _json(run.document())

    @router.get("/versions", summary="All versions, newest first")
    async def versions(pipeline: str) -> Response:
        service = desk()
        _snapshot(service, pipeline)
        async with service.store.transaction() as transaction:
            found = await transaction.versions(pipeline)
        return _json({"versions": [_version(registered) for registered in found]})

    @router.post("/versions/{version}/approve", summary="Let a passed challenger roll out")
    async def approve(pipeline: str, version: VersionNumber, body: Approval) -> Response:
        service = desk()
        _snapshot(service, pipeline)
        registered = await _approve(service, pipeline, version, body)
        service.wake(pipeline)
        return _json(_version(registered))

    @router.get("/progress", summary="What is processed, and whether a run is under way")
    async def progress(pipeline: str) -> Response:
        service = desk()
        _snapshot(service, pipeline)
        async with service.store.transaction() as transaction:
            run = await transaction.active_run(pipeline)
            clock = await transaction.clock(pipeline)
            reached = await transaction.positions(pipeline)
        positions: dict[str, dict[str, int]] = {}
        for (topic, partition), offset in reached.items():
            positions.setdefault(topic, {})[str(partition)] = offset
        return _json({"clock": clock, "positions": positions, "pending": _pending(run)})

    return router


def _pending(run: Run | None) -> list[dict[str, str]]:
    return [{"kind": "training", "id": run.id}] if run else []


async def _approve(desk: Desk, pipeline: str, number: int, approval: Approval) -> Registered:
    """Approving what is approved already changes nothing."""
    async with desk.store.transaction() as transaction:
        registered = await transaction.version(pipeline, number)
        if registered is None:
            raise NotFound(f"{pipeline!r} has no version {number}")
        before = registered.announcement
        if before.state is VersionState.APPROVED:
            return registered
        if before.state is not VersionState.REGISTERED:
            raise Conflict(f"version {number} is {before.state}, only registered ones are approved")
        clock = PipelineClock(desk.clock)
        clock.observe(await transaction.clock(pipeline))
        now = clock.now_millis()
        after = msgspec.structs.replace(
            before, state=VersionState.APPROVED, available_at=max(before.available_at, now)
        )
        await transaction.change_version(after)
        await transaction.audit(
            pipeline,
            "approved",
            at=now,
            evidence={"version": number, "by": approval.by, "comment": approval.comment},
        )
        changed = await transaction.version(pipeline, number)
    if changed is None:
        raise RuntimeError("a version just changed is gone")
    return changed


def _version(registered: Registered) -> dict[str, Any]:
    return {
        **msgspec.to_builtins(registered.announcement),
        "run": registered.run_id,
        "mlflow_run": registered.mlflow_run,
        "mlflow_version": registered.mlflow_version,
    }


def _json(document: dict[str, Any], *, status_code: int = 200) -> Response:
    return Response(
        msgspec.json.encode(document), status_code=status_code, media_type="application/json"
    )


def _snapshot(desk: Desk, pipeline: str) -> Snapshot:
    if snapshot := desk.pipelines.get(pipeline):
        return snapshot
    raise unknown_pipeline(pipeline, desk.pipelines, is_informed=desk.is_informed())
