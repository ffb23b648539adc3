"""The hot route: one thin ASGI handler in front of the application that serves everything else."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from homeostat.common import bodies
from homeostat.common.errors import HomeostatError
from homeostat.common.http import predicted_pipeline
from homeostat.router.predictions import Predictions, Wire, failure


class HotRoute:
    """Answers ``POST /v1/pipelines/{pipeline}/predict`` itself and hands on the rest."""

    def __init__(self, app: ASGIApp, predictions: Callable[[], Predictions]) -> None:
        self._app = app
        self._predictions = predictions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pipeline = predicted_pipeline(scope)
        if pipeline is None:
            await self._app(scope, receive, send)
            return
        predictions = self._predictions()
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        try:
            body = await bodies.read(
                receive,
                limit=predictions.max_body_bytes,
                announced=headers.get("content-length", ""),
            )
        except HomeostatError as error:
            await _write(send, failure(error))
            return
        if body is not None:
            await _write(send, await predictions.respond(pipeline, body, headers))


async def _write(send: Send, wire: Wire) -> None:
    headers = [
        (b"content-type", wire.media_type.encode()),
        (b"content-length", str(len(wire.content)).encode()),
        *((name.encode(), value.encode()) for name, value in wire.headers.items()),
    ]
    await send({"type": "http.response.start", "status": wire.status, "headers": headers})
    await send({"type": "http.response.body", "body": wire.content})
