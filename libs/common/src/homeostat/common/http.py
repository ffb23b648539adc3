"""What every HTTP edge shares: problem documents for errors, and a server that drains."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from types import FrameType
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import StringConstraints
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from homeostat.common import bodies
from homeostat.common.errors import HomeostatError, InvalidInput, Unparsable, Violation, problem
from homeostat.common.health import Health

logger = logging.getLogger(__name__)

# Text of a caller that a database is to keep: Postgres has no place for NUL.
StorableText = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
PROBLEM = "application/problem+json"
DRAIN_SECONDS = 0.5
LEAVE_SECONDS = 1.0
_PREFIX, _SUFFIX = "/v1/pipelines/", "/predict"
GRACE_SECONDS = 15
MAX_BODY_BYTES = 1_000_000


def application(health: Health, *, max_body_bytes: int = MAX_BODY_BYTES, **options: Any) -> FastAPI:
    """A FastAPI application with the health routes and one way to tell errors.

    A request whose body is longer than ``max_body_bytes`` is refused as soon as that is known.
    """
    app = FastAPI(title=health.service, **options)
    app.state.health = health
    app.include_router(health.router())
    app.add_exception_handler(HomeostatError, _homeostat_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    app.add_middleware(_BoundedBody, limit=max_body_bytes)
    return app


def render(error: HomeostatError) -> JSONResponse:
    document = problem(error)
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
    return JSONResponse(document, document["status"], headers, media_type=PROBLEM)


def predicted_pipeline(scope: Scope) -> str | None:
    """The pipeline of ``POST /v1/pipelines/{pipeline}/predict``, a hot route."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    path: str = scope["path"]
    if not (path.startswith(_PREFIX) and path.endswith(_SUFFIX)):
        return None
    name = path[len(_PREFIX) : -len(_SUFFIX)]
    return name if name and "/" not in name else None


async def _homeostat_error(_request: Request, error: Any) -> JSONResponse:
    return render(error)


async def _validation_error(_request: Request, error: Any) -> JSONResponse:
    items = error.errors()
    if any(item["type"] == "json_invalid" for item in items):
        return render(Unparsable("the body is not JSON"))
    violations = [
        Violation(".".join(str(part) for part in item["loc"][1:]) or "body", item["msg"])
        for item in items
    ]
    return render(InvalidInput("the request is invalid", violations=violations))


async def _http_error(_request: Request, error: Any) -> JSONResponse:
    if isinstance(error.__cause__, HomeostatError):  # FastAPI's cover over what a read has raised
        return render(error.__cause__)
    if error.status_code == HTTPStatus.BAD_REQUEST:  # FastAPI's word for what its JSON cannot read
        return render(Unparsable("the body is not JSON that can be read"))
    status = HTTPStatus(error.status_code)
    document = {
        "type": "about:blank",
        "title": status.phrase,
        "status": int(status),
        "code": status.name,
        "detail": error.detail,
    }
    return JSONResponse(document, error.status_code, error.headers, media_type=PROBLEM)


async def _unexpected(_request: Request, error: Any) -> JSONResponse:
    logger.error("request failed unexpectedly", exc_info=error)
    return render(HomeostatError("an unexpected error; the log has it by trace id"))


class _BoundedBody:
    """Ends the reading of a body that has become too long."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            receive = bodies.bounded(receive, self._limit)
        await self._app(scope, receive, send)


class DrainingServer(uvicorn.Server):
    """A server whose first SIGTERM lets callers leave before it closes; a second closes at once.

    Three steps, so that no request is lost on the way out. First it is unready and answers on as
    ever: balancers look away. Then it stops listening, and only now tells each caller with
    ``Connection: close`` to go: told before, they would come back through the open listener, and
    a connection that waits there to be accepted is reset when it closes. Last, what is in flight
    is finished and the process exits with 0.
    """

    def __init__(self, config: uvicorn.Config, health: Health) -> None:
        super().__init__(config)
        self._health = health
        self._closes_at: float | None = None
        self._leaves_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's
        if self._health.is_draining:
            self.should_exit = self.force_exit = True
        self._health.is_draining = True
        self._closes_at = time.monotonic() + DRAIN_SECONDS

    async def on_tick(self, counter: int) -> bool:
        now = time.monotonic()
        if self._leaves_at is not None:
            has_callers = bool(self.server_state.connections)
            self.should_exit = self.should_exit or not has_callers or now >= self._leaves_at
        elif self._closes_at is not None and now >= self._closes_at:
            for server in self.servers:
                server.close()
            self._health.is_leaving = True
            self._leaves_at = now + LEAVE_SECONDS
        return await super().on_tick(counter)


class _CloseWhileLeaving:
    """Tells keep-alive callers to connect anew, elsewhere, once the service listens no longer."""

    def __init__(self, app: ASGIApp, health: Health) -> None:
        self._app = app
        self._health = health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_last(message: Message) -> None:
            # Asked for each answer, not each request: one may be under way when the service leaves.
            if self._health.is_leaving and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, send_last)


def serve(factory: Callable[[], FastAPI], *, host: str, port: int) -> None:
    """Run one application until SIGTERM, then finish what is in flight."""
    app = factory()
    health: Health = app.state.health
    config = uvicorn.Config(
        _CloseWhileLeaving(app, health),
        host=host,
        port=port,
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=65,
        h11_max_incomplete_event_size=64 * 1024,
    )
    DrainingServer(config, health).run()
