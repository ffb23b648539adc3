"""HTTP: read the body, check the rows, publish, answer for each one."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from opentelemetry import trace

from homeostat.common import bodies, telemetry, topics
from homeostat.common.clock import Clock, to_millis
from homeostat.common.errors import (
    Forbidden,
    InvalidEvent,
    TransientError,
    problem,
    unknown_pipeline,
)
from homeostat.common.events import REPLAY_STAMP, EventContract
from homeostat.common.http import render
from homeostat.ingest import intake, metrics
from homeostat.ingest.intake import Check, Row
from homeostat.ingest.publisher import Position, Publisher
from homeostat.ingest.settings import Settings

TOKEN_HEADER = "X-Replay-Token"  # noqa: S105 - the name of a header
_STAMP = f'"{REPLAY_STAMP}"'.encode()
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Intake:
    """What the routes need: the known contracts, the way to Kafka, and the rules."""

    contracts: Mapping[str, EventContract]
    is_informed: Callable[[], bool]  # whether the pipelines are known at all
    publisher: Publisher
    settings: Settings
    clock: Clock
    tracer: trace.Tracer


def routes(desk: Callable[[], Intake]) -> APIRouter:
    """The routes; ``desk`` gives what lives as long as the application."""
    router = APIRouter(prefix="/v1/pipelines/{pipeline}", tags=["intake"])

    @router.post("/events", status_code=202, summary="Take one event, an array, or NDJSON")
    async def events(pipeline: str, request: Request) -> Response:
        service = desk()
        contract = _contract(service, pipeline)
        body = await _body(request, service.settings.max_body_bytes)
        check = (
            intake.replayed_event(contract)
            if _is_replay(request, body, service.settings)
            else intake.live_event(contract, to_millis(service.clock.now()))
        )
        return await _take(service, pipeline, topics.EVENTS, request, body, check)

    @router.post("/labels", status_code=202, summary="Take one label, an array, or NDJSON")
    async def labels(pipeline: str, request: Request) -> Response:
        service = desk()
        _contract(service, pipeline)
        body = await _body(request, service.settings.max_body_bytes)
        is_replay = _is_replay(request, body, service.settings)
        check = intake.replayed_label if is_replay else intake.live_label
        return await _take(service, pipeline, topics.LABELS, request, body, check)

    return router


async def _take(
    service: Intake,
    pipeline: str,
    destination: topics.Topic,
    request: Request,
    body: bytes,
    check: Check,
) -> Response:
    kind = destination.template.rpartition("-")[2]
    parsed = bodies.split(
        body, request.headers.get("content-type", ""), max_rows=service.settings.max_rows
    )
    metrics.RECEIVED.labels(pipeline, kind).inc(len(parsed.rows))
    outcomes = intake.check_rows(parsed.rows, check)
    for outcome in outcomes:
        if isinstance(outcome, InvalidEvent):
            metrics.REFUSED.labels(pipeline, kind, outcome.reason).inc()
    if parsed.is_single and isinstance(outcomes[0], InvalidEvent):
        return render(outcomes[0])
    rows = [outcome for outcome in outcomes if isinstance(outcome, Row)]
    topic = destination.of(pipeline)
    with telemetry.send_span(service.tracer, topic, request.headers.get("traceparent")) as span:
        try:
            positions = await service.publisher.publish(
                topic, rows, traceparent=telemetry.traceparent(span)
            )
        except TransientError:
            metrics.REFUSED.labels(pipeline, kind, "unavailable").inc(len(rows))
            raise
    metrics.ACCEPTED.labels(pipeline, kind).inc(len(rows))
    if parsed.is_single:
        return _json(_accepted(positions[0]) | {"id": rows[0].id})
    found = iter(positions)
    items = [
        _accepted(next(found))
        if isinstance(outcome, Row)
        else {"status": problem(outcome)["status"], "problem": problem(outcome)}
        for outcome in outcomes
    ]
    return _json({"accepted": len(rows), "refused": len(outcomes) - len(rows), "items": items})


def _accepted(position: Position) -> dict[str, Any]:
    return {
        "status": 202,
        "topic": position.topic,
        "partition": position.partition,
        "offset": position.offset,
    }


def _json(document: dict[str, Any]) -> Response:
    return Response(_encode(document), status_code=202, media_type="application/json")


def _contract(service: Intake, pipeline: str) -> EventContract:
    if contract := service.contracts.get(pipeline):
        return contract
    raise unknown_pipeline(pipeline, service.contracts, is_informed=service.is_informed())


async def _body(request: Request, limit: int) -> bytes:
    announced = request.headers.get("content-length", "")
    return await bodies.read(request.receive, limit=limit, announced=announced) or b""


def _is_replay(request: Request, body: bytes, settings: Settings) -> bool:
    """Whether the rows bring their own clock, which takes the replay token."""
    sent = request.headers.get(TOKEN_HEADER)
    token = settings.replay_token
    if sent is not None:
        if token is None or not hmac.compare_digest(
            sent.encode(), token.get_secret_value().encode()
        ):
            raise Forbidden("the replay token does not match")
        return True
    if _STAMP in body:
        raise Forbidden(
            f"only a replay may set {REPLAY_STAMP}", fix=f"send the token in {TOKEN_HEADER}"
        )
    return False
