"""Composition root of the judge."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError

from homeostat.common import db, kafka, telemetry, topics
from homeostat.common.clock import SystemClock
from homeostat.common.errors import TransientError
from homeostat.common.health import Health
from homeostat.common.http import application, render, serve
from homeostat.common.pipeline import Snapshot
from homeostat.common.schemas.models import ModelVersion
from homeostat.router.judge import api
from homeostat.router.judge.office import Office
from homeostat.router.judge.term import Term
from homeostat.router.settings import JudgeSettings
from homeostat.router.store import Kept, Store

SERVICE = "judge"


def create_app(settings: JudgeSettings | None = None) -> FastAPI:
    settings = settings or JudgeSettings()
    health = Health("router")
    bench: list[api.Bench] = []

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        clock = SystemClock()
        engine = db.engine(settings.database_url.get_secret_value(), application=SERVICE)
        store = Store(engine)
        pipelines = kafka.CompactedView(
            topics.PIPELINES,
            Snapshot.decode,
            directory=settings.state_dir,
            bootstrap_servers=settings.kafka_bootstrap_servers,
            client_id=SERVICE,
        )
        versions = kafka.CompactedView(
            topics.MODEL_VERSIONS,
            msgspec.json.Decoder(ModelVersion).decode,
            directory=settings.state_dir,
            bootstrap_servers=settings.kafka_bootstrap_servers,
            client_id=SERVICE,
        )

        def begin(epoch: int, kept: Kept) -> Term:
            return Term(
                epoch,
                kept,
                store=store,
                settings=settings,
                pipelines=pipelines.values,
                versions=versions.values,
                clock=clock,
            )

        holder = f"{socket.gethostname()}:{settings.port}:{os.getpid()}"
        office = Office(store, settings, holder=holder, begin=begin)
        bench.append(
            api.Bench(
                office,
                store,
                pipelines.values,
                versions.values,
                lambda: versions.positions,
                clock,
            )
        )
        health.add("pipelines", lambda: None if pipelines.is_usable else "not read from Kafka")
        health.add("office", lambda: office.trouble)
        await asyncio.gather(pipelines.start(), versions.start(), office.start())
        try:
            yield
        finally:
            await office.stop()
            await asyncio.gather(pipelines.stop(), versions.stop())
            await engine.dispose()

    app = application(health, lifespan=lifespan)
    app.include_router(api.routes(lambda: bench[0]))
    app.add_exception_handler(SQLAlchemyError, _postgres_away)
    return app


async def _postgres_away(_request: Request, error: Exception) -> JSONResponse:
    return render(
        TransientError(f"Postgres does not answer: {type(error).__name__}", retry_after_seconds=2)
    )


def main() -> None:
    telemetry.setup(SERVICE)
    settings = JudgeSettings()
    serve(lambda: create_app(settings), host=settings.host, port=settings.port)
