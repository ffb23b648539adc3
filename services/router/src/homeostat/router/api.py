"""HTTP beside the hot route: the rollout as this router knows it, and what is forwarded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
from fastapi import APIRouter, Request, Response

from homeostat.common import bodies
from homeostat.common.errors import NotFound, TransientError
from homeostat.common.schemas.rollouts import RolloutSnapshot
from homeostat.router.predictions import Prediction, Predictions, Wire

_HOP_HEADERS = ("content-type", "traceparent", "tracestate", "x-replay-token")
_ANSWER_HEADERS = ("content-type", "retry-after")


@dataclass(frozen=True)
class Desk:
    """What the routes need."""

    predictions: Predictions
    rollouts: Mapping[str, RolloutSnapshot]
    followed: Callable[[], dict[str, dict[str, int]]]  # positions of the rollouts read
    http: httpx.AsyncClient
    ingest_url: str
    judge_url: str


def _schema(kind: type) -> dict[str, Any]:
    (schema,), components = msgspec.json.schema_components(
        [kind], ref_template="#/components/schemas/{name}"
    )
    named: dict[str, Any] = components.get(schema.get("$ref", "").rpartition("/")[2], schema)
    return named


def routes(desk: Callable[[], Desk]) -> APIRouter:
    """The routes; ``desk`` gives what lives as long as the application."""
    router = APIRouter(prefix="/v1/pipelines/{pipeline}")

    @router.post(
        "/predict",
        tags=["predictions"],
        summary="Score an event, entity keys or a vector; one, an array, or NDJSON",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"type": ["object", "array"]}}},
            }
        },
        responses={200: {"content": {"application/json": {"schema": _schema(Prediction)}}}},
    )
    async def predict(pipeline: str, request: Request) -> Response:
        predictions = desk().predictions
        headers = dict(request.headers)
        body = await _body(request, predictions)
        return _response(await predictions.respond(pipeline, body, headers))

    @router.post(
        "/events", tags=["intake"], summary="Hand events on to ingest; ?score=true answers"
    )
    async def events(pipeline: str, request: Request, score: bool = False) -> Response:
        service = desk()
        predictions = service.predictions
        predictions.reader(pipeline)
        headers = dict(request.headers)
        body = await _body(request, predictions)
        url = f"{service.ingest_url}/v1/pipelines/{pipeline}/events"
        intake = await _forward(service.http, "POST", url, body, headers)
        if not score or intake.status_code != 202:
            return _relayed(intake)
        scored = await predictions.respond(pipeline, body, headers)
        return Response(
            msgspec.json.encode(
                {"intake": intake.json(), "prediction": json.loads(scored.content)}
            ),
            status_code=202 if scored.status == 200 else scored.status,
            media_type="application/json",
            headers=dict(scored.headers),
        )

    @router.get("/rollout", tags=["rollout"], summary="The rollout as this router knows it")
    async def rollout(pipeline: str) -> Response:
        service = desk()
        service.predictions.reader(pipeline)
        snapshot = service.rollouts.get(pipeline)
        if snapshot is None:
            raise NotFound(
                f"pipeline {pipeline!r} has had no rollout yet",
                fix="the first approved version starts one",
            )
        return Response(msgspec.json.encode(snapshot), media_type="application/json")

    @router.get("/progress", summary="How far this router has read what it follows")
    async def progress(pipeline: str) -> dict[str, Any]:
        desk().predictions.reader(pipeline)
        return {"clock": None, "positions": desk().followed(), "pending": []}

    @router.get("/rollout/decisions", tags=["rollout"], summary="What the judge decided, and why")
    async def decisions(pipeline: str, request: Request) -> Response:
        return await _to_judge(desk(), "GET", f"{pipeline}/rollout/decisions", request)

    @router.get("/rollout/analysis", tags=["rollout"], summary="How the stage in flight stands")
    async def analysis(pipeline: str, request: Request) -> Response:
        return await _to_judge(desk(), "GET", f"{pipeline}/rollout/analysis", request)

    @router.post(
        "/rollout/{action}", tags=["rollout"], summary="start, pause, resume, promote or abort"
    )
    async def command(pipeline: str, action: str, request: Request) -> Response:
        return await _to_judge(desk(), "POST", f"{pipeline}/rollout/{action}", request)

    return router


async def _to_judge(service: Desk, method: str, path: str, request: Request) -> Response:
    url = f"{service.judge_url}/v1/pipelines/{path}"
    if request.url.query:
        url = f"{url}?{request.url.query}"
    body = await _body(request, service.predictions)
    return _relayed(await _forward(service.http, method, url, body, request.headers))


async def _body(request: Request, predictions: Predictions) -> bytes:
    announced = request.headers.get("content-length", "")
    limit = predictions.max_body_bytes
    return await bodies.read(request.receive, limit=limit, announced=announced) or b""


async def _forward(
    client: httpx.AsyncClient, method: str, url: str, body: bytes, headers: Mapping[str, str]
) -> httpx.Response:
    handed_on = {name: headers[name] for name in _HOP_HEADERS if name in headers}
    try:
        return await client.request(method, url, content=body, headers=handed_on)
    except httpx.HTTPError as error:
        host = httpx.URL(url).netloc.decode()
        raise TransientError(
            f"{host} does not answer: {type(error).__name__}", retry_after_seconds=2
        ) from error


def _relayed(answer: httpx.Response) -> Response:
    headers = {name: answer.headers[name] for name in _ANSWER_HEADERS if name in answer.headers}
    return Response(answer.content, answer.status_code, headers)


def _response(wire: Wire) -> Response:
    return Response(wire.content, wire.status, dict(wire.headers), media_type=wire.media_type)
