"""Composition root of the features service: workers, offline writers, audit, and the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from aiokafka.errors import KafkaError
from fastapi import FastAPI
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from homeostat.common import kafka, telemetry, topics
from homeostat.common.feature_store.definitions import Definition
from homeostat.common.feature_store.reading import OnlineRows, open_redis
from homeostat.common.grpc_serving import GrpcServer
from homeostat.common.health import Health
from homeostat.common.http import application, serve
from homeostat.common.kafka import Installation
from homeostat.common.pipeline import Snapshot
from homeostat.common.schemas.rollouts import RolloutSnapshot
from homeostat.common.windows.warm_up import warm_up
from homeostat.features import api
from homeostat.features.audit.api import routes as audit_routes
from homeostat.features.audit.auditors import Auditors
from homeostat.features.keeping import DefinitionKeeper
from homeostat.features.metrics import WorkerCollector
from homeostat.features.offline.api import routes as offline_routes
from homeostat.features.offline.writers import Writers
from homeostat.features.serving.api import MAX_BODY_BYTES
from homeostat.features.serving.api import routes as serving_routes
from homeostat.features.serving.catalogue import Announced, Catalogue
from homeostat.features.serving.feast import routes as feast_routes
from homeostat.features.serving.grpc_server import SERVICE as GRPC_SERVICE
from homeostat.features.serving.grpc_server import Features
from homeostat.features.serving.reading import FeatureReader
from homeostat.features.settings import Settings
from homeostat.features.workers import Workers

SERVICE = "features"
RETRY_SECONDS = 2.0


@dataclass
class _Parts:
    """What exists only while the server runs."""

    workers: Workers
    writers: Writers
    auditors: Auditors
    redis: Redis
    read_redis: Redis
    keeper: DefinitionKeeper
    snapshots: kafka.CompactedView[Snapshot]
    followed: Sequence[kafka.CompactedView[Any]]  # snapshots last: they start the work
    reader: FeatureReader
    catalogue: Catalogue
    grpc_server: GrpcServer


def create_app(settings: Settings | None = None) -> FastAPI:
    settings = settings or Settings()
    health = Health(SERVICE)
    running: list[_Parts] = []

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            parts = _parts(settings)
            running.append(parts)
            _add_checks(health, parts)
            collector = WorkerCollector(lambda: parts.workers.running)
            REGISTRY.register(collector)
            stack.callback(REGISTRY.unregister, collector)
            for redis in (parts.redis, parts.read_redis):
                stack.push_async_callback(redis.aclose)
            topics_task = asyncio.create_task(_ensure_topics(settings.kafka_bootstrap_servers))
            stack.callback(topics_task.cancel)
            for view in parts.followed:
                await view.start()
            parts.keeper.start()
            await parts.grpc_server.start()
            yield
            health.is_draining = True
            await parts.grpc_server.stop()
            await parts.keeper.stop()
            for view in parts.followed:
                await view.stop()
            await parts.auditors.stop()
            await asyncio.gather(parts.workers.stop(), parts.writers.stop())

    app = application(health, max_body_bytes=MAX_BODY_BYTES, lifespan=lifespan)
    app.include_router(api.routes(lambda: running[0].workers, lambda: running[0].redis))
    app.include_router(offline_routes(lambda: running[0].writers))
    app.include_router(audit_routes(lambda: running[0].auditors))
    app.include_router(serving_routes(lambda: running[0].reader, lambda: running[0].catalogue))
    app.include_router(feast_routes(lambda: running[0].reader))
    return app


def _parts(settings: Settings) -> _Parts:
    def is_informed() -> bool:
        return snapshots.is_usable

    def pinned(pipeline: str) -> Iterable[str]:
        rollout = rollouts.values.get(pipeline)
        models = () if rollout is None else (rollout.champion, rollout.challenger)
        announced = [versions.values.get(f"{pipeline}/{model}") for model in models]
        return {each.definition_hash for each in announced if each is not None}

    workers = Workers(settings, is_informed, pinned)
    writers = Writers(settings, is_informed)

    def follow(name: str, snapshot: Snapshot | None) -> None:
        workers.follow(name, snapshot)
        writers.follow(name, snapshot)
        auditors.follow(name, snapshot)

    def features_of(pipeline: str, version: int) -> Sequence[str] | None:
        announced = versions.values.get(f"{pipeline}/{version}")
        return None if announced is None else announced.features

    following: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_bootstrap_servers,
        "client_id": SERVICE,
        "directory": settings.state_dir / SERVICE,
    }
    snapshots = kafka.CompactedView(
        topics.PIPELINES,
        Snapshot.decode,
        on_change=follow,
        is_newer=lambda new, old: new.generation >= old.generation,
        **following,
    )
    definitions = kafka.CompactedView(
        topics.DEFINITIONS, Definition.decode, on_change=workers.follow_definition, **following
    )
    versions = kafka.CompactedView(
        topics.MODEL_VERSIONS,
        msgspec.json.Decoder(Announced).decode,
        on_change=lambda key, _: workers.look_again(key.rpartition("/")[0]),
        **following,
    )
    rollouts = kafka.CompactedView(
        topics.ROLLOUTS,
        msgspec.json.Decoder(RolloutSnapshot).decode,
        on_change=lambda pipeline, _: workers.look_again(pipeline),
        is_newer=lambda new, old: new.order >= old.order,
        **following,
    )
    auditors = Auditors(settings, is_informed, features_of)
    url = str(settings.redis_url)
    read_redis = open_redis(
        url, timeout=settings.read_timeout, connections=settings.read_connections
    )
    partitions = Installation.from_environment().partitions
    reader = FeatureReader(
        read_redis,
        OnlineRows(partitions=partitions, stale_after=settings.stale_after),
        workers.view,
        max_rows=settings.read_max_rows,
    )
    redis = Redis.from_url(url, socket_timeout=2.0, socket_connect_timeout=1.0)
    followed = (definitions, versions, rollouts, snapshots)
    return _Parts(
        workers=workers,
        writers=writers,
        auditors=auditors,
        keeper=DefinitionKeeper(
            workers,
            redis,
            settings,
            partitions=partitions,
            is_informed=lambda: all(view.is_caught_up for view in followed),
        ),
        redis=redis,
        read_redis=read_redis,
        snapshots=snapshots,
        followed=followed,
        reader=reader,
        catalogue=Catalogue(
            read_redis,
            workers.views,
            lambda: [*versions.values.values()] if versions.is_usable else None,
            is_informed=is_informed,
            partitions=partitions,
            stale_after=settings.stale_after,
        ),
        grpc_server=GrpcServer(
            Features(reader).register,
            service=GRPC_SERVICE,
            address=f"{settings.host}:{settings.grpc_port}",
        ),
    )


def _add_checks(health: Health, parts: _Parts) -> None:
    health.add(
        "pipelines", lambda: None if parts.snapshots.is_usable else "no snapshot: is Kafka away?"
    )
    health.add("workers", parts.workers.problem)
    health.add("definitions", parts.keeper.problem)
    health.add("offline store", parts.writers.problem)


async def _ensure_topics(bootstrap_servers: str) -> None:
    """Create the global topics, as soon as Kafka can be asked."""
    while True:
        with suppress(KafkaError, OSError):
            await kafka.ensure_topics(
                bootstrap_servers, ((topic.of(), topic) for topic in topics.GLOBAL)
            )
            return
        await asyncio.sleep(RETRY_SECONDS)


def main() -> None:
    telemetry.setup(SERVICE)
    # Before a caller has to wait for the kernels of the online read.
    warm_up()
    settings = Settings()
    serve(lambda: create_app(settings), host=settings.host, port=settings.port)
