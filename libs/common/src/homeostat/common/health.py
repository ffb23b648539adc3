"""Liveness, readiness, metrics and version: the same four routes on every service.

Liveness says that the process turns and never asks a dependency; readiness says whether it can do
its job.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

Check = Callable[[], str | None]  # ``None``: fine; otherwise what is wrong and what to do


class Health:
    """The named readiness checks of one service.

    ``is_draining`` makes it unready at once; ``is_leaving`` says that it listens no longer.
    """

    def __init__(self, service: str) -> None:
        self.service = service
        self.is_draining = False
        self.is_leaving = False
        self._checks: dict[str, Check] = {}

    def add(self, name: str, check: Check) -> None:
        self._checks[name] = check

    def problems(self) -> dict[str, str]:
        found = {name: check() for name, check in self._checks.items()}
        if self.is_draining:
            found["draining"] = "the service is stopping"
        return {name: problem for name, problem in found.items() if problem is not None}

    def router(self) -> APIRouter:
        router = APIRouter(tags=["health"])

        @router.get("/livez")
        async def livez() -> dict[str, str]:
            return {"status": "ok"}

        @router.get("/readyz")
        async def readyz() -> JSONResponse:
            problems = self.problems()
            checks = {name: problems.get(name, "ok") for name in {**self._checks, **problems}}
            return JSONResponse(
                {"ready": not problems, "checks": checks}, status_code=503 if problems else 200
            )

        @router.get("/metrics")
        async def metrics() -> Response:
            return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

        @router.get("/version")
        async def version() -> dict[str, str]:
            return {
                "service": self.service,
                "version": metadata.version(f"homeostat-{self.service}"),
            }

        return router
