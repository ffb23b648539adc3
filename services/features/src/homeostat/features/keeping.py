"""The life of a definition beside its worker: told to be live when it has caught up, and removed
when nobody has needed it for long."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from aiokafka.errors import KafkaError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from homeostat.common import kafka, topics
from homeostat.common.feature_store.definitions import Definition
from homeostat.common.feature_store.online import all_keys, progress_key
from homeostat.common.feature_store.reading import progress_of
from homeostat.common.topics import HASH_LENGTH
from homeostat.features.settings import Settings
from homeostat.features.workers import Workers

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
CLIENT_ID = "features-definitions"
SCANNED = 1_000  # keys of the store a call


@dataclass(frozen=True)
class _Reached:
    """How many entities had caught up by an instant (epoch ms)."""

    entities: int = 0
    at: int = field(default_factory=lambda: round(time.time() * 1000))


class DefinitionKeeper:
    """Looks after the definitions of all pipelines; every replica may, since each step repeats.

    It does nothing before ``is_informed``: what is needed is not known then.
    """

    def __init__(
        self,
        workers: Workers,
        redis: Redis,
        settings: Settings,
        *,
        partitions: int,
        is_informed: Callable[[], bool],
    ) -> None:
        self._workers = workers
        self._is_informed = is_informed
        self._redis = redis
        self._settings = settings
        self._partitions = partitions
        self._reached: dict[str, _Reached] = {}  # by definition that is filling
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="definitions")

    def problem(self) -> str | None:
        """For readiness: whether nobody looks after definitions any more, and why."""
        if self._task is None or not self._task.done() or self._task.cancelled():
            return None
        return f"definitions are not looked after: {self._task.exception()!r}"

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        grace = self._settings.definition_grace.total_seconds()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if not self._is_informed():
                continue
            try:
                for definition in self._workers.filling:
                    if await self._has_caught_up(definition):
                        await self._tell_live(definition)
                for definition in self._workers.unneeded(grace_seconds=grace):
                    await self._remove(definition)
            except (KafkaError, RedisError, OSError) as error:
                logger.warning("definitions not looked after", extra={"error": repr(error)})

    async def _has_caught_up(self, definition: Definition) -> bool:
        """Whether all that the log held when the definition was first seen here is folded.

        Entity after entity: what one has left behind is on the log of the next.
        """
        view = definition.view
        reached = self._reached.setdefault(definition.key, _Reached())
        for entity in view.entities[reached.entities :]:
            keys = [
                progress_key(view.pipeline.name, view.definition_hash, entity, part)
                for part in range(self._partitions)
            ]
            values: list[bytes | None] = await self._redis.mget(keys)  # type: ignore[assignment]  # not decoded
            progress = [progress_of(value) for value in values]
            if not all(each is not None and each.current_at >= reached.at for each in progress):
                return False
            self._reached[definition.key] = reached = _Reached(reached.entities + 1)
        del self._reached[definition.key]
        return True

    async def _tell_live(self, definition: Definition) -> None:
        live = Definition(definition.snapshot, is_live=True)
        await self._publish(live.key, live.encode())
        logger.info("definition is live", extra=_named(definition))

    async def _remove(self, definition: Definition) -> None:
        """Delete its rows and topics, then its record: what is cut short begins again."""
        pipeline, digest = definition.snapshot.pipeline, definition.view.definition_hash
        cursor = -1
        while cursor != 0:
            cursor, keys = await self._redis.scan(
                max(cursor, 0), match=all_keys(pipeline.name, digest), count=SCANNED
            )
            if keys:
                await self._redis.unlink(*keys)
        await kafka.delete_topics(
            self._settings.kafka_bootstrap_servers,
            [name for name, _ in topics.of_definition(pipeline, digest)],
        )
        await self._publish(definition.key, None)
        logger.info("definition removed", extra=_named(definition))

    async def _publish(self, key: str, value: bytes | None) -> None:
        producer = kafka.producer(self._settings.kafka_bootstrap_servers, client_id=CLIENT_ID)
        await producer.start()
        try:
            await producer.send_and_wait(topics.DEFINITIONS.of(), value, key.encode())
        finally:
            await producer.stop()


def _named(definition: Definition) -> dict[str, str]:
    return {
        "pipeline": definition.snapshot.pipeline.name,
        "definition": definition.view.definition_hash[:HASH_LENGTH],
    }
