"""HTTP: the hot route as a bare ASGI handler, and FastAPI around it for everything else.

``predict`` is declared in FastAPI too, so that OpenAPI shows it; both call the same function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from homeostat.common import bodies
from homeostat.common.errors import BodyTooLarge
from homeostat.common.http import PROBLEM, predicted_pipeline
from homeostat.inference import tracing
from homeostat.inference.models import Models
from homeostat.inference.pipelines import Pipelines
from homeostat.inference.predicting import Predictor, Reply, failed, retry_after

_encode = msgspec.json.Encoder().encode

Positions = Callable[[str], dict[str, dict[str, int]]]


class PredictRoute:
    """Answers ``POST /v1/pipelines/{pipeline}/predict`` before FastAPI sees it."""

    def __init__(self, app: ASGIApp, *, predictor: Predictor, max_body_bytes: int) -> None:
        self._app = app
        self._predictor = predictor
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pipeline = predicted_pipeline(scope)
        if pipeline is None:
            await self._app(scope, receive, send)
            return
        try:
            body = await bodies.read(receive, limit=self._max_body_bytes)
        except BodyTooLarge as error:
            await _send(send, failed(error))
            return
        if body is None:
            return
        with tracing.request_span(_header(scope, b"traceparent")) as traceparent:
            content_type = _header(scope, b"content-type") or ""
            reply = await self._predictor.predict(
                pipeline, body, content_type=content_type, traceparent=traceparent
            )
        await _send(send, reply)


def _header(scope: Scope, name: bytes) -> str | None:
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return None


async def _send(send: Send, reply: Reply) -> None:
    content_type = b"application/json" if reply.status == 200 else PROBLEM.encode()
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(reply.body))]
    if reply.retry_after_seconds is not None:
        headers.append((b"retry-after", retry_after(reply.retry_after_seconds)))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


def router(
    *, predictor: Predictor, pipelines: Pipelines, models: Models, positions: Positions
) -> APIRouter:
    api = APIRouter(prefix="/v1/pipelines/{pipeline}", tags=["inference"])

    @api.post(
        "/predict",
        summary="Score an event, entity keys or a vector; an array or NDJSON of these",
        openapi_extra={"requestBody": {"content": {"application/json": {}}, "required": True}},
    )
    async def predict(pipeline: str, request: Request) -> Response:
        reply = await predictor.predict(
            pipeline,
            await request.body(),
            content_type=request.headers.get("content-type", ""),
            traceparent=request.headers.get("traceparent"),
        )
        media_type = "application/json" if reply.status == 200 else PROBLEM
        return Response(reply.body, reply.status, media_type=media_type)

    @api.get("/models", summary="The loaded versions and their states")
    async def loaded(pipeline: str) -> Response:
        pipelines.get(pipeline)
        return _json({"models": models.statuses(pipeline), "rollout": models.rollout(pipeline)})

    @api.get("/progress", summary="What has been scored, and what is still loading")
    async def progress(pipeline: str) -> Response:
        served = pipelines.get(pipeline)
        return _json(
            {
                "clock": served.clock.now_millis() if served.clock.is_replayed else None,
                "positions": positions(pipeline),
                "pending": [
                    {"kind": "loading", "id": str(version)} for version in models.loading(pipeline)
                ],
            }
        )

    return api


def _json(document: dict[str, Any]) -> Response:
    return Response(_encode(document), media_type="application/json")
