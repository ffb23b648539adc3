"""Composition root of the ingest service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from opentelemetry import trace

from homeostat.common import kafka, telemetry, topics
from homeostat.common.clock import SystemClock
from homeostat.common.events import EventContract
from homeostat.common.health import Health
from homeostat.common.http import application, serve
from homeostat.common.pipeline import Snapshot
from homeostat.ingest import api
from homeostat.ingest.publisher import Publisher
from homeostat.ingest.settings import Settings

SERVICE = "ingest"


def create_app(settings: Settings | None = None) -> FastAPI:
    settings = settings or Settings()
    health = Health(SERVICE)
    desk: list[api.Intake] = []

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        contracts: dict[str, EventContract] = {}
        pii_key = settings.pii_hash_key.get_secret_value().encode()

        def learn(name: str, snapshot: Snapshot | None) -> None:
            if snapshot is None:
                contracts.pop(name, None)
            else:
                contracts[name] = EventContract(snapshot.pipeline, pii_key=pii_key)

        pipelines = kafka.CompactedView(
            topics.PIPELINES,
            Snapshot.decode,
            bootstrap_servers=settings.kafka_bootstrap_servers,
            client_id=SERVICE,
            directory=settings.state_dir,
            on_change=learn,
        )
        publisher = Publisher(
            settings.kafka_bootstrap_servers,
            client_id=SERVICE,
            max_in_flight_bytes=settings.max_in_flight_bytes,
            deadline_seconds=settings.deadline.total_seconds(),
        )
        await publisher.start()
        await pipelines.start()
        health.add("pipelines", lambda: None if pipelines.is_usable else "not read from Kafka")
        health.add(
            "kafka", lambda: None if publisher.is_connected else "the broker does not answer"
        )
        desk.append(
            api.Intake(
                contracts,
                lambda: pipelines.is_usable,
                publisher,
                settings,
                SystemClock(),
                trace.get_tracer("homeostat.ingest"),
            )
        )
        try:
            yield
        finally:
            health.is_draining = True
            await pipelines.stop()
            await publisher.stop()

    app = application(health, max_body_bytes=settings.max_body_bytes, lifespan=lifespan)
    app.include_router(api.routes(lambda: desk[0]))
    return app


def main() -> None:
    telemetry.setup(SERVICE)
    settings = Settings()
    serve(lambda: create_app(settings), host=settings.host, port=settings.port)
