"""The workers of all pipelines: started, changed and stopped as snapshots come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from homeostat.common import kafka
from homeostat.common.errors import unknown_pipeline
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import Snapshot
from homeostat.features.settings import Settings
from homeostat.features.supervision import WorkerSupervisor


class Workers:
    """Starts a pipeline's worker when its snapshot appears, and stops it when that is gone."""

    def __init__(self, settings: Settings, is_informed: Callable[[], bool]) -> None:
        self._settings = settings
        self._is_informed = is_informed
        self._workers: dict[str, WorkerSupervisor] = {}
        self._views: dict[str, FeatureView] = {}
        self._changes: set[asyncio.Task[None]] = set()
        self._ends = Ends(settings.kafka_bootstrap_servers)

    @property
    def running(self) -> Mapping[str, WorkerSupervisor]:
        return self._workers

    @property
    def views(self) -> Mapping[str, FeatureView]:
        """The newest definition of every pipeline, by name; it changes as snapshots come."""
        return self._views

    def follow(self, name: str, snapshot: Snapshot | None) -> None:
        """Take note of a pipeline's newest snapshot; ``None``: it was removed."""
        if snapshot is None:
            self._views.pop(name, None)
            self._end(name)
            return
        self._views[name] = FeatureView(snapshot.pipeline)
        worker = self._workers.get(name)
        if worker is not None:
            self._in_background(worker.change(snapshot))
            return
        self._workers[name] = WorkerSupervisor(
            snapshot,
            folder=self._settings.state_dir / "features",
            ends=self._ends,
            patience_seconds=self._settings.progress_timeout.total_seconds(),
        )
        self._workers[name].start()

    def view(self, pipeline: str) -> FeatureView:
        """
        Raises:
            NotFound: no such pipeline was applied.
            TransientError: nothing has been heard of pipelines yet.
        """
        if pipeline not in self._views:
            raise unknown_pipeline(pipeline, self._views, is_informed=self._is_informed())
        return self._views[pipeline]

    def problem(self) -> str | None:
        """For readiness: which pipelines nobody works on here."""
        down = [name for name, worker in self._workers.items() if not worker.is_running]
        return f"no worker runs for {', '.join(down)}" if down else None

    async def stop(self) -> None:
        """Let every worker drain."""
        await asyncio.gather(*(worker.stop() for worker in self._workers.values()), *self._changes)
        await self._ends.close()

    def _end(self, name: str) -> None:
        if (worker := self._workers.pop(name, None)) is not None:
            self._in_background(worker.stop())

    def _in_background(self, change: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)


class Ends:
    """Asks Kafka for the ends of partitions, over one connection of the server's own."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._consumer: AIOKafkaConsumer | None = None
        self._alone = asyncio.Lock()

    async def __call__(self, partitions: list[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        """
        Raises:
            OSError: Kafka is away.
        """
        if not partitions:
            return {}
        try:
            async with self._alone:
                consumer = await self._started()
                ends = await consumer.end_offsets([TopicPartition(*place) for place in partitions])
        except KafkaError as error:
            await self.close()
            raise ConnectionError(f"Kafka did not tell the ends: {error!r}") from error
        return {(place.topic, place.partition): end for place, end in ends.items()}

    async def close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()

    async def _started(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            consumer = kafka.consumer(
                bootstrap_servers=self._bootstrap_servers, client_id="features-ends"
            )
            try:
                await consumer.start()
            except BaseException:
                await consumer.stop()
                raise
            self._consumer = consumer
        return self._consumer
