"""A watch for every pipeline that exists, and what the process as a whole depends on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from sqlalchemy.exc import SQLAlchemyError

from homeostat.common import kafka, topics
from homeostat.common.clock import SystemClock
from homeostat.common.errors import TransientError
from homeostat.common.kafka import CompactedView
from homeostat.common.pipeline import Snapshot
from homeostat.common.schemas.models import ModelVersion
from homeostat.common.schemas.rollouts import RolloutSnapshot
from homeostat.drift import metrics
from homeostat.drift.consumer import CLIENT_ID, Watch
from homeostat.drift.references import References, decode_rollout, decode_version
from homeostat.drift.settings import Settings
from homeostat.drift.store import Store

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


class Supervisor:
    """Starts with every dependency away, and keeps trying; ``problem`` says what is missing."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._wall = SystemClock()
        options: dict[str, Any] = {
            "bootstrap_servers": settings.kafka_bootstrap_servers,
            "client_id": CLIENT_ID,
        }
        folder = settings.state_dir
        self.pipelines = CompactedView(
            topics.PIPELINES, Snapshot.decode, directory=folder, **options
        )
        self.rollouts = CompactedView[RolloutSnapshot](
            topics.ROLLOUTS,
            decode_rollout,
            directory=folder,
            is_newer=lambda new, old: new.order >= old.order,
            **options,
        )
        self.versions = CompactedView[ModelVersion](
            topics.MODEL_VERSIONS, decode_version, directory=folder, **options
        )
        self.references = References(self.pipelines, self.rollouts, self.versions)
        self._watches: dict[str, Watch] = {}
        self._producer: AIOKafkaProducer | None = None
        self._task: asyncio.Task[None] | None = None
        self._problem: str | None = "starting"

    @property
    def watches(self) -> Mapping[str, Watch]:
        return self._watches

    def problem(self) -> str | None:
        """What keeps this replica from working, if anything."""
        if self._problem:
            return self._problem
        if self._task is not None and self._task.done():
            return "the supervisor has ended; the log says why"
        ended = sorted(name for name, watch in self._watches.items() if watch.failure)
        return f"watches ended: {', '.join(ended)}" if ended else None

    async def start(self) -> None:
        for view in (self.pipelines, self.rollouts, self.versions):
            await view.start()
        self._task = asyncio.create_task(self._run(), name="supervisor")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*(watch.stop() for watch in self._watches.values()))
        for view in (self.pipelines, self.rollouts, self.versions):
            await view.stop()
        if self._producer is not None:
            await self._producer.stop()

    async def _run(self) -> None:
        servers = self._settings.kafka_bootstrap_servers
        await self._insist("kafka", self._connect)
        await self._insist(
            "kafka topics",
            lambda: kafka.ensure_topics(servers, ((each.of(), each) for each in topics.GLOBAL)),
        )
        await self._insist("database", self._store.migrate)
        for view in (self.pipelines, self.rollouts, self.versions):
            await view.caught_up()  # a watch that knows no champion yet would count rows as unknown
        self._problem = None
        while True:
            await self._reconcile()
            await asyncio.sleep(RETRY_SECONDS)

    async def _connect(self) -> None:
        producer = kafka.producer(self._settings.kafka_bootstrap_servers, client_id=CLIENT_ID)
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        self._producer = producer

    async def _insist(self, what: str, attempt: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await attempt()
            except (KafkaError, SQLAlchemyError, TransientError, OSError, TimeoutError) as error:
                self._problem = f"{what} is away: {error!r}"
                logger.warning(
                    "dependency away, trying again", extra={"what": what, "error": repr(error)}
                )
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def _reconcile(self) -> None:
        """A watch for each pipeline: new ones start, those whose pipeline is gone stop."""
        for name, watch in list(self._watches.items()):
            if (failure := watch.failure) is not None:
                # One pipeline's fault must not stop the others: it restarts, as a process would.
                logger.error("watch crashed", extra={"pipeline": name}, exc_info=failure)
                metrics.CRASHES.labels(name).inc()
                del self._watches[name]
        for name in self._watches.keys() - self.pipelines.values.keys():
            await self._watches.pop(name).stop()
        for name in self.pipelines.values.keys() - self._watches.keys():
            if self._producer is None or len(self._watches) >= self._settings.max_pipelines:
                logger.error("pipeline not watched: too many", extra={"pipeline": name})
                continue
            watch = Watch(
                name,
                lambda name=name: self.references.monitor(name),  # type: ignore[misc]  # bound now
                self._store,
                self._producer,
                bootstrap_servers=self._settings.kafka_bootstrap_servers,
                commit_seconds=self._settings.commit_interval.total_seconds(),
                wall=self._wall,
            )
            watch.start()
            self._watches[name] = watch
