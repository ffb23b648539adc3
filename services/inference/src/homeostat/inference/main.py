"""Composition root of the inference service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import msgspec
from aiokafka.errors import KafkaError
from fastapi import FastAPI

from homeostat.common import kafka, telemetry, topics
from homeostat.common.feature_store.definitions import Definition
from homeostat.common.feature_store.reading import OnlineRows, open_redis
from homeostat.common.grpc_serving import GrpcServer
from homeostat.common.health import Health
from homeostat.common.http import application, serve
from homeostat.common.kafka import CompactedView, Installation
from homeostat.common.pipeline import Snapshot
from homeostat.common.schemas.models import ModelVersion
from homeostat.common.schemas.rollouts import RolloutSnapshot
from homeostat.common.windows.warm_up import warm_up
from homeostat.inference import api
from homeostat.inference.artifact_store import ArtifactStore
from homeostat.inference.breaker import Breaker
from homeostat.inference.features import OnlineFeatures
from homeostat.inference.grpc_server import SERVICE as GRPC_SERVICE
from homeostat.inference.grpc_server import Inference
from homeostat.inference.ledger import Ledger
from homeostat.inference.models import Models
from homeostat.inference.pipelines import Pipelines
from homeostat.inference.predicting import Predictor
from homeostat.inference.probe import probe
from homeostat.inference.scoring import DataPlane
from homeostat.inference.settings import Settings
from homeostat.inference.stream import Streams

logger = logging.getLogger(__name__)

SERVICE = "inference"
ARTIFACT_TIMEOUT = timedelta(seconds=5)
RETRY_SECONDS = 2.0


def create_app(settings: Settings | None = None) -> FastAPI:
    settings = settings or Settings()
    connect = partial(
        open_redis,
        settings.redis_url.get_secret_value(),
        connections=settings.redis_connections,
    )
    redis = connect(timeout=settings.redis_timeout)
    # Model files are large and off the hot path: a connection with time of its own.
    artifact_redis = connect(timeout=ARTIFACT_TIMEOUT)
    servers = settings.kafka_bootstrap_servers
    store = ArtifactStore(
        settings.state_dir / "artifacts",
        redis=artifact_redis,
        verify_key=settings.model_verify_key_file,
    )
    models = Models(
        fetch=store.fetch,
        probe=partial(probe, patience=settings.probe_timeout),
        drain=settings.drain,
    )
    ledger = Ledger(
        partial(kafka.producer, servers, client_id=SERVICE),
        capacity=settings.ledger_rows,
        flush=settings.ledger_flush,
    )
    plane = DataPlane(
        OnlineFeatures(
            redis,
            Breaker(failures=settings.breaker_failures, open_for=settings.breaker_open),
            OnlineRows(
                partitions=Installation.from_environment().partitions,
                stale_after=settings.stale_after,
            ),
        ),
        ledger,
        max_batch_rows=settings.max_batch_rows,
        queue_rows=settings.queue_rows,
    )
    streams = Streams(models, bootstrap_servers=servers, session_timeout=settings.session_timeout)
    pipelines = Pipelines(
        pii_key=settings.pii_hash_key.get_secret_value().encode(), on_change=streams.follow
    )
    predictor = Predictor(
        pipelines,
        models,
        plane,
        max_rows=settings.max_request_rows,
        max_timeout=settings.max_timeout,
    )
    grpc_server = GrpcServer(
        Inference(pipelines, models, plane, max_timeout=settings.max_timeout).register,
        service=GRPC_SERVICE,
        address=f"{settings.host}:{settings.grpc_port}",
    )
    following: dict[str, Any] = {
        "bootstrap_servers": servers,
        "client_id": SERVICE,
        "directory": settings.state_dir,
    }
    views: dict[str, CompactedView[Any]] = {
        "definitions": CompactedView(
            topics.DEFINITIONS,
            Definition.decode,
            on_change=pipelines.follow_definition,
            **following,
        ),
        "pipelines": CompactedView(
            topics.PIPELINES, Snapshot.decode, on_change=pipelines.follow, **following
        ),
        "model-versions": CompactedView(
            topics.MODEL_VERSIONS,
            msgspec.json.Decoder(ModelVersion).decode,
            on_change=models.announce,
            **following,
        ),
        "rollouts": CompactedView(
            topics.ROLLOUTS,
            msgspec.json.Decoder(RolloutSnapshot).decode,
            on_change=models.follow,
            is_newer=lambda new, old: new.order >= old.order,
            **following,
        ),
    }
    health = Health(SERVICE)
    for topic in ("pipelines", "model-versions", "rollouts"):
        health.add(topic, partial(_unreadable, views[topic]))
    health.add("models", models.problem)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        topic_maker = asyncio.create_task(_ensure_topics(servers), name="global topics")
        await ledger.start()
        for view in views.values():
            await view.start()
        await grpc_server.start()
        yield
        health.is_draining = True
        topic_maker.cancel()
        await grpc_server.stop()
        await plane.drain()
        await streams.stop()
        for view in views.values():
            await view.stop()
        await models.stop()
        await ledger.stop()
        await redis.aclose()
        await artifact_redis.aclose()
        await asyncio.gather(topic_maker, return_exceptions=True)

    app = application(health, max_body_bytes=settings.max_body_bytes, lifespan=lifespan)
    app.add_middleware(
        api.PredictRoute, predictor=predictor, max_body_bytes=settings.max_body_bytes
    )
    app.include_router(
        api.router(
            predictor=predictor,
            pipelines=pipelines,
            models=models,
            positions=lambda name: {
                **streams.positions(name),
                **views["model-versions"].positions,
                **views["rollouts"].positions,
            },
        )
    )
    return app


def _unreadable(view: CompactedView[Any]) -> str | None:
    return None if view.is_usable else "not read yet, and nothing on disk: is Kafka there?"


async def _ensure_topics(bootstrap_servers: str) -> None:
    while True:
        try:
            await kafka.ensure_topics(
                bootstrap_servers, [(topic.of(), topic) for topic in topics.GLOBAL]
            )
        except (KafkaError, OSError) as error:
            logger.warning("topics not ensured yet", extra={"error": repr(error)})
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return


def main() -> None:
    telemetry.setup(SERVICE)
    # Before a caller has to wait for the kernels of the online read.
    warm_up()
    settings = Settings()
    serve(lambda: create_app(settings), host=settings.host, port=settings.port)
