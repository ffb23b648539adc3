"""The judge's HTTP: commands of people, and everything that it knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from homeostat.common.clock import Clock, to_millis
from homeostat.common.errors import Conflict, NotFound, TransientError, problem, unknown_pipeline
from homeostat.common.http import PROBLEM, StorableText
from homeostat.common.pipeline import Pipeline, Snapshot
from homeostat.common.schemas.models import ModelVersion
from homeostat.router import judging
from homeostat.router.judge.office import Office
from homeostat.router.judge.term import Term
from homeostat.router.judging import Action, Command, State
from homeostat.router.store import Store


class StandingBy(TransientError):
    code = "STANDING_BY"


class CommandBody(BaseModel):
    """``generation`` is the state that the command is meant for; another one is a conflict."""

    model_config = ConfigDict(extra="forbid")

    generation: int | None = None
    by: Annotated[StorableText, Field(min_length=1, max_length=128)] = "operator"
    reason: Annotated[StorableText, Field(max_length=1024)] = ""
    version: int | None = None
    force: bool = False
    to_champion: bool = False


@dataclass(frozen=True)
class Bench:
    """What the routes need."""

    office: Office
    store: Store
    pipelines: Mapping[str, Snapshot]
    versions: Mapping[str, ModelVersion]
    followed: Callable[[], dict[str, dict[str, int]]]  # positions of the announcements read
    clock: Clock


def routes(bench: Callable[[], Bench]) -> APIRouter:
    """The routes; ``bench`` gives what lives as long as the application."""
    router = APIRouter(prefix="/v1/pipelines/{pipeline}", tags=["rollout"])

    @router.get("/rollout", summary="The rollout as it is decided")
    async def rollout(pipeline: str) -> Response:
        service = bench()
        _known(service, pipeline)
        state, epoch = await _state(service, pipeline)
        return _json(state.rollout.snapshot(epoch))

    @router.get("/rollout/analysis", summary="How the stage in flight stands")
    async def analysis(pipeline: str) -> Response:
        service = bench()
        spec = _known(service, pipeline)
        state, epoch = await _state(service, pipeline)
        term = service.office.term
        now = term.now(pipeline) if term else to_millis(service.clock.now())
        return _json(
            {
                "rollout": state.rollout.snapshot(epoch),
                "at": now,
                "judgement": judging.current_judgement(state, now, spec),
                "observation": state.observation.figures(),
                "skew": state.skew,
            }
        )

    @router.get("/rollout/decisions", summary="What was decided, newest first, with its evidence")
    async def decisions(
        pipeline: str, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> Response:
        service = bench()
        _known(service, pipeline)
        return _json({"decisions": await service.store.decisions(pipeline, limit=limit)})

    @router.get("/progress", summary="How far everything read has been judged")
    async def progress(pipeline: str) -> Response:
        service = bench()
        spec = _known(service, pipeline)
        term = _acting(service)
        return _json(
            {
                "clock": term.now(pipeline),
                "positions": term.positions(pipeline) | service.followed(),
                "pending": term.pending(spec),
            }
        )

    @router.post("/rollout/{action}", summary="start, pause, resume, promote, abort, clear")
    async def command(pipeline: str, action: Action, body: CommandBody | None = None) -> Response:
        service = bench()
        _known(service, pipeline)
        term = _acting(service)
        body = body or CommandBody()
        order = Command(
            action=action,
            by=body.by,
            reason=body.reason,
            generation=body.generation,
            version=_version(service, pipeline, body.version),
            is_forced=body.force,
            to_champion=body.to_champion,
        )
        try:
            state = await term.command(pipeline, order)
        except Conflict as error:
            snapshot = term.state(pipeline).rollout.snapshot(term.epoch)
            document = problem(error) | {"state": msgspec.to_builtins(snapshot)}
            return JSONResponse(document, document["status"], media_type=PROBLEM)
        return _json(state.rollout.snapshot(term.epoch))

    return router


def _known(service: Bench, pipeline: str) -> Pipeline:
    if snapshot := service.pipelines.get(pipeline):
        return snapshot.pipeline
    raise unknown_pipeline(pipeline, service.pipelines, is_informed=True)


def _acting(service: Bench) -> Term:
    if service.office.term is None:
        reason = service.office.trouble or "another judge acts"
        raise StandingBy(f"this judge does not act: {reason}", retry_after_seconds=3)
    return service.office.term


async def _state(service: Bench, pipeline: str) -> tuple[State, int]:
    """The state, from memory while acting, else as it was committed."""
    if (term := service.office.term) is not None:
        return term.state(pipeline), term.epoch
    return await service.store.state(pipeline) or State.empty(pipeline), 0


def _version(service: Bench, pipeline: str, number: int | None) -> ModelVersion | None:
    if number is None:
        return None
    version = service.versions.get(f"{pipeline}/{number}")
    if version is None:
        raise NotFound(f"pipeline {pipeline!r} has no version {number}")
    return version


def _json(document: Any) -> Response:
    return Response(msgspec.json.encode(document), media_type="application/json")
