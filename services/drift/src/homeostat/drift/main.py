"""Composition root of the drift service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from homeostat.common import db, telemetry
from homeostat.common.health import Health
from homeostat.common.http import application, serve
from homeostat.drift import api
from homeostat.drift.settings import Settings
from homeostat.drift.store import Store
from homeostat.drift.supervisor import Supervisor

SERVICE = "drift"
SPARE_CONNECTIONS = 5  # for requests and migrations, beside one for each watch


def create_app(settings: Settings | None = None) -> FastAPI:
    settings = settings or Settings()
    health = Health(SERVICE)
    database = db.engine(
        settings.database_url,
        application=SERVICE,
        pool_size=settings.max_pipelines + SPARE_CONNECTIONS,
    )
    store = Store(database)
    parts: list[Supervisor] = []

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        supervisor = Supervisor(settings, store)
        parts.append(supervisor)
        health.add("watching", supervisor.problem)
        await supervisor.start()
        try:
            yield
        finally:
            health.is_draining = True
            await supervisor.stop()
            await database.dispose()

    app = application(health, lifespan=lifespan)
    app.include_router(api.routes(lambda: parts[0], lambda: store))
    return app


def main() -> None:
    telemetry.setup(SERVICE)
    settings = Settings()
    serve(lambda: create_app(settings), host=settings.host, port=settings.port)
