"""Tells Kafka what the outbox holds, and keeps the files of models in Redis before it does."""

from __future__ import annotations

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from homeostat.common import artifacts, kafka, topics
from homeostat.common.errors import TransientError
from homeostat.common.schemas.models import ModelVersion
from homeostat.trainer import metrics
from homeostat.trainer.store import Store


class Announcer:
    """Starts its producer when Kafka first answers; every call may be repeated."""

    def __init__(self, store: Store, redis: Redis, *, bootstrap_servers: str) -> None:
        self._store = store
        self._redis = redis
        self._bootstrap_servers = bootstrap_servers
        self._producer: AIOKafkaProducer | None = None

    async def flush(self, pipeline: str) -> None:
        """Publish everything that waits, in order; on return the broker has it all.

        Raises:
            TransientError: Kafka or Redis is away; what was not acknowledged still waits.
        """
        async with self._store.transaction() as transaction:
            waiting = await transaction.outbox(pipeline)
        metrics.OUTBOX.labels(pipeline).set(len(waiting))
        for record in waiting:
            if record.topic == topics.MODEL_VERSIONS.of():
                version = msgspec.json.decode(record.value, type=ModelVersion)
                await self.keep_artifact(version.artifact.sha256)
            try:
                producer = await self._connected()
                await producer.send_and_wait(
                    record.topic, record.value, record.key.encode(), headers=record.headers
                )
            except (KafkaError, OSError) as error:
                raise TransientError(f"Kafka is away: {error!r}") from error
            async with self._store.transaction() as transaction:
                await transaction.told([record])
        metrics.OUTBOX.labels(pipeline).set(0)

    async def keep_artifact(self, sha256: str) -> None:
        """Put a model's file where replicas look first, unless it is there.

        Raises:
            TransientError: Redis is away.
        """
        key = artifacts.redis_key(sha256)
        try:
            if await self._redis.exists(key):
                return
            async with self._store.transaction() as transaction:
                content = await transaction.artifact(sha256)
            if content is not None:
                await self._redis.set(key, content)
        except (RedisError, OSError) as error:
            raise TransientError(f"Redis is away: {error!r}") from error

    async def stop(self) -> None:
        if self._producer is not None:
            await self._producer.stop()

    async def _connected(self) -> AIOKafkaProducer:
        if self._producer is None:
            producer = kafka.producer(self._bootstrap_servers, client_id="trainer")
            try:
                await producer.start()
            except KafkaError:
                await producer.stop()
                raise
            self._producer = producer
        return self._producer
