"""Composition root of the trainer service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import msgspec
from aiokafka.errors import KafkaError
from fastapi import FastAPI
from redis.asyncio import Redis
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from homeostat.common import db, kafka, telemetry, topics
from homeostat.common.clock import SystemClock
from homeostat.common.health import Health
from homeostat.common.http import application, serve
from homeostat.common.pipeline import Snapshot
from homeostat.common.schemas.rollouts import RolloutSnapshot
from homeostat.trainer import api
from homeostat.trainer.announcer import Announcer
from homeostat.trainer.leader import Leader
from homeostat.trainer.offline_store import OfflineStore
from homeostat.trainer.registry import Registry
from homeostat.trainer.runner import Runner
from homeostat.trainer.settings import Settings
from homeostat.trainer.store import Store

logger = logging.getLogger(__name__)

SERVICE = "trainer"
LEADERS = 64  # pipelines of one replica
REDIS_SECONDS = 5
RETRY_SECONDS = 1.0
REGISTRY_INTERVAL = timedelta(seconds=5)


def create_app(settings: Settings | None = None) -> FastAPI:
    settings = settings or Settings()
    health = Health(SERVICE)
    desk: list[api.Desk] = []

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        clock = SystemClock()
        url = settings.database_url.get_secret_value()
        store = Store(
            db.engine(url, application=SERVICE),
            locks=db.engine(url, application=f"{SERVICE} locks", pool_size=LEADERS),
        )
        redis = Redis.from_url(
            settings.redis_url.get_secret_value(),
            socket_timeout=REDIS_SECONDS,
            socket_connect_timeout=REDIS_SECONDS,
        )
        announcer = Announcer(store, redis, bootstrap_servers=settings.kafka_bootstrap_servers)
        offline_store = OfflineStore(settings.features_url)
        rollouts = kafka.CompactedView(
            topics.ROLLOUTS,
            lambda value: msgspec.json.decode(value, type=RolloutSnapshot),
            bootstrap_servers=settings.kafka_bootstrap_servers,
            client_id=SERVICE,
            directory=settings.state_dir,
            is_newer=lambda new, old: new.order >= old.order,
        )

        def champion_of(pipeline: str) -> int | None:
            rollout = rollouts.values.get(pipeline)
            return rollout.champion if rollout else None

        runner = Runner(store, announcer, offline_store, settings, clock, champion_of)

        def learn(pipeline: str, snapshot: Snapshot | None) -> None:
            if snapshot is None:
                leader.forget(pipeline)
            else:
                leader.follow(pipeline)

        pipelines = kafka.CompactedView(
            topics.PIPELINES,
            Snapshot.decode,
            bootstrap_servers=settings.kafka_bootstrap_servers,
            client_id=SERVICE,
            directory=settings.state_dir,
            on_change=learn,
        )
        leader = Leader(
            store,
            runner,
            announcer,
            pipelines=pipelines.values,
            rollouts=rollouts,
            bootstrap_servers=settings.kafka_bootstrap_servers,
            wall=clock,
        )
        _add_checks(health, settings, store, pipelines, rollouts)
        desk.append(
            api.Desk(store, pipelines.values, lambda: pipelines.is_usable, clock, leader.wake)
        )

        async def begin() -> None:
            await _until_there(settings, store)
            await rollouts.start()
            await pipelines.start()
            if settings.mlflow_tracking_uri is not None:
                registry = Registry(store, settings.mlflow_tracking_uri, lambda: rollouts.values)
                await registry.follow(interval=REGISTRY_INTERVAL)

        background = asyncio.create_task(begin(), name="begin")
        try:
            yield
        finally:
            health.is_draining = True
            background.cancel()
            await asyncio.gather(background, return_exceptions=True)
            await leader.stop()
            await pipelines.stop()
            await rollouts.stop()
            await announcer.stop()
            await offline_store.close()
            await redis.aclose()
            await store.close()

    app = application(health, lifespan=lifespan)
    app.include_router(api.routes(lambda: desk[0]))
    return app


async def _until_there(settings: Settings, store: Store) -> None:
    """The schema and the global topics exist before anything else begins."""
    while True:
        try:
            await store.migrate()
            await kafka.ensure_topics(
                settings.kafka_bootstrap_servers, ((topic.of(), topic) for topic in topics.GLOBAL)
            )
        except (DBAPIError, PoolTimeout, KafkaError, OSError, TimeoutError) as error:
            logger.warning("trainer waits for a dependency", extra={"error": repr(error)})
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return


def _add_checks(
    health: Health,
    settings: Settings,
    store: Store,
    pipelines: kafka.CompactedView[Snapshot],
    rollouts: kafka.CompactedView[RolloutSnapshot],
) -> None:
    health.add("postgres", lambda: None if store.is_ready else "its schema is not there yet")
    health.add("pipelines", lambda: None if pipelines.is_usable else "not read from Kafka")
    health.add("rollouts", lambda: None if rollouts.is_usable else "not read from Kafka")

    def signing_key() -> str | None:
        file = settings.signing_key_file
        return None if file and file.exists() else "set MODEL_SIGNING_KEY_FILE to a private key"

    health.add("signing key", signing_key)


def main() -> None:
    telemetry.setup(SERVICE)
    settings = Settings()
    serve(lambda: create_app(settings), host=settings.host, port=settings.port)
