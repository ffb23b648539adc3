"""Composition root of the data plane."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import msgspec
from fastapi import FastAPI
from opentelemetry import trace

from homeostat.common import kafka, telemetry, topics
from homeostat.common.clock import SystemClock, to_millis
from homeostat.common.health import Health
from homeostat.common.http import application, serve
from homeostat.common.pipeline import Snapshot
from homeostat.common.schemas.models import ModelVersion
from homeostat.common.schemas.rollouts import RolloutSnapshot
from homeostat.router import api
from homeostat.router.hot import HotRoute
from homeostat.router.predictions import Predictions
from homeostat.router.publisher import Publisher, TripFollower
from homeostat.router.routing import Limits, Routing
from homeostat.router.settings import Settings
from homeostat.router.trips import Trips
from homeostat.router.upstream import Inference

SERVICE = "router"


def create_app(settings: Settings | None = None) -> FastAPI:
    settings = settings or Settings()
    health = Health(SERVICE)
    desk: list[api.Desk] = []

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        clock = SystemClock()
        broker = settings.kafka_bootstrap_servers
        trips = Trips(settings.state_dir / "trips.json")
        publisher = Publisher(broker, client_id=SERVICE, max_waiting=settings.max_waiting_exposures)
        rollouts = kafka.CompactedView(
            topics.ROLLOUTS,
            msgspec.json.Decoder(RolloutSnapshot).decode,
            directory=settings.state_dir,
            is_newer=lambda new, old: new.order > old.order,
            bootstrap_servers=broker,
            client_id=SERVICE,
        )
        versions = kafka.CompactedView(
            topics.MODEL_VERSIONS,
            msgspec.json.Decoder(ModelVersion).decode,
            directory=settings.state_dir,
            bootstrap_servers=broker,
            client_id=SERVICE,
        )
        inference = Inference(settings.inference_target, max_batch_rows=settings.max_batch_rows)
        routing = Routing(
            rollouts=rollouts.values,
            versions=versions.values,
            inference=inference,
            publisher=publisher,
            trips=trips,
            limits=Limits(
                request_seconds=settings.request_timeout.total_seconds(),
                challenger_seconds=settings.challenger_timeout.total_seconds(),
                max_shadow_in_flight=settings.max_shadow_in_flight,
                retry_capacity=settings.max_in_flight,
            ),
            now_millis=lambda: to_millis(clock.now()),
            router=f"{socket.gethostname()}:{settings.port}:{os.getpid()}",
            first_champion_hint=(
                f"train one: curl -X POST {settings.trainer_url}/v1/pipelines/{{pipeline}}/runs "
                """-H 'content-type: application/json' -d '{{"cause": "first champion"}}'"""
            ),
        )
        token = settings.replay_token
        predictions = Predictions(
            routing,
            clock=clock,
            tracer=trace.get_tracer("homeostat.router"),
            replay_token=token.get_secret_value() if token else None,
            pii_key=settings.pii_hash_key.get_secret_value().encode(),
            max_body_bytes=settings.max_body_bytes,
            max_request_rows=settings.max_request_rows,
            max_in_flight=settings.max_in_flight,
            is_informed=lambda: pipelines.is_usable,
        )
        pipelines = kafka.CompactedView(
            topics.PIPELINES,
            Snapshot.decode,
            directory=settings.state_dir,
            on_change=predictions.learn,
            bootstrap_servers=broker,
            client_id=SERVICE,
        )
        follower = TripFollower(broker, client_id=SERVICE, trips=trips)
        health.add("pipelines", lambda: None if pipelines.is_usable else "not read from Kafka")
        health.add("rollouts", lambda: None if rollouts.is_usable else "not read from Kafka")
        health.add(
            "inference", lambda: None if inference.is_connected else settings.inference_target
        )
        views = (rollouts, versions, pipelines)
        # The views first, from disk: a request must find them. Trips that the judge may have missed
        # are told again; it knows them by key.
        await asyncio.gather(*(view.start() for view in views))
        for trip in trips:
            publisher.report(trip)
        await publisher.start()
        await follower.start()
        async with httpx.AsyncClient(timeout=settings.control_timeout.total_seconds()) as client:
            desk.append(
                api.Desk(
                    predictions,
                    rollouts.values,
                    lambda: rollouts.positions,
                    client,
                    settings.ingest_url,
                    settings.judge_url,
                )
            )
            try:
                yield
            finally:
                await routing.drain()
                await inference.close()
                await asyncio.gather(follower.stop(), *(view.stop() for view in views))
                await publisher.stop()

    app = application(health, max_body_bytes=settings.max_body_bytes, lifespan=lifespan)
    app.include_router(api.routes(lambda: desk[0]))
    app.add_middleware(HotRoute, predictions=lambda: desk[0].predictions)
    return app


def main() -> None:
    telemetry.setup(SERVICE)
    settings = Settings()
    serve(lambda: create_app(settings), host=settings.host, port=settings.port)
