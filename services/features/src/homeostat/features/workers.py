"""The workers of all pipelines: started, changed and stopped as definitions come and go.

Each definition that somebody needs (see ``definitions``) has a worker of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from homeostat.common import kafka
from homeostat.common.errors import unknown_pipeline
from homeostat.common.feature_store.definitions import Definition, split_key
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import Snapshot
from homeostat.features.definitions import PipelineDefinitions
from homeostat.features.settings import Settings
from homeostat.features.supervision import Job, Role, WorkerSupervisor

Place = tuple[str, str]  # pipeline, and what the worker is there for


def jobs_of(definitions: PipelineDefinitions, pinned: Iterable[str]) -> Mapping[str, Job]:
    """The work on one pipeline, by definition hash or role.

    The newest definition's worker reads the raw input too, on behalf of all; but as long as that
    definition fills, which may take long, a worker of its own does.
    """
    newest, is_filling = definitions.newest, definitions.filling is not None
    jobs = {
        digest: Job(
            definition.snapshot,
            digest,
            Role.ALL if definition is newest and not is_filling else Role.FOLD,
        )
        for digest, definition in definitions.needed(pinned).items()
    }
    if newest is not None and is_filling:
        jobs[Role.INTAKE] = Job(newest.snapshot, newest.view.definition_hash, Role.INTAKE)
    return jobs


class Workers:
    """``pinned`` gives the definitions that a pipeline's models in use were trained on."""

    def __init__(
        self,
        settings: Settings,
        is_informed: Callable[[], bool],
        pinned: Callable[[str], Iterable[str]],
    ) -> None:
        self._settings = settings
        self._is_informed = is_informed
        self._pinned = pinned
        self._definitions: dict[str, PipelineDefinitions] = defaultdict(PipelineDefinitions)
        self._workers: dict[Place, WorkerSupervisor] = {}
        self._views: dict[str, FeatureView] = {}
        self._unneeded: dict[Place, float] = {}  # since when, monotonic seconds
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._changes: set[asyncio.Task[None]] = set()
        self._ends = Ends(settings.kafka_bootstrap_servers)

    @property
    def running(self) -> Iterable[WorkerSupervisor]:
        return self._workers.values()

    @property
    def views(self) -> Mapping[str, FeatureView]:
        """The definition of every pipeline that answers reads, by name; it changes as they come."""
        return self._views

    @property
    def filling(self) -> list[Definition]:
        """The newest definitions that have not caught up yet."""
        found = [each.filling for each in self._definitions.values()]
        return [definition for definition in found if definition is not None]

    def follow(self, name: str, snapshot: Snapshot | None) -> None:
        """Take note of a pipeline's newest snapshot; ``None``: it was removed."""
        newest = None if snapshot is None else Definition(snapshot, is_live=False)
        self._definitions[name].newest = newest
        self.look_again(name)

    def follow_definition(self, key: str, definition: Definition | None) -> None:
        """Take note of a definition; ``None``: it is not kept any more."""
        name, digest = split_key(key)
        if definition is None:
            self._definitions[name].known.pop(digest, None)
        else:
            self._definitions[name].known[digest] = definition
        self.look_again(name)

    def look_again(self, name: str) -> None:
        """Bring a pipeline's workers to what is needed now."""
        serving = self._definitions[name].serving
        if serving is None:
            self._views.pop(name, None)
        else:
            self._views[name] = serving.view
        task = asyncio.create_task(self._bring_about(name))
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)

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
        down = sorted(
            {name for (name, _), worker in self._workers.items() if not worker.is_running}
        )
        return f"no worker runs for {', '.join(down)}" if down else None

    def unneeded(self, *, grace_seconds: float) -> list[Definition]:
        """The definitions that nobody has needed for so long."""
        now, found = time.monotonic(), []
        for name, definitions in self._definitions.items():
            if definitions.newest is None:
                continue
            needed = definitions.needed(self._pinned(name))
            newest = definitions.newest.snapshot.generation
            for digest, definition in definitions.known.items():
                # One that is told before its snapshot is needed soon.
                if digest in needed or definition.snapshot.generation > newest:
                    self._unneeded.pop((name, digest), None)
                elif now - self._unneeded.setdefault((name, digest), now) >= grace_seconds:
                    found.append(definition)
        return found

    async def stop(self) -> None:
        """Let every worker drain."""
        await asyncio.gather(*self._changes)
        await asyncio.gather(*(worker.stop() for worker in self._workers.values()))
        await self._ends.close()

    async def _bring_about(self, name: str) -> None:
        """Stop and change workers first: what reads the input twice would be in its own way."""
        async with self._turns[name]:
            jobs = {
                (name, what): job
                for what, job in jobs_of(self._definitions[name], self._pinned(name)).items()
            }
            own = [place for place in self._workers if place[0] == name]
            for place in (place for place in own if place not in jobs):
                await self._workers.pop(place).stop()
            for place in (place for place in own if place in jobs):
                await self._workers[place].change(jobs[place])
            for place in jobs.keys() - self._workers.keys():
                self._workers[place] = WorkerSupervisor(
                    jobs[place],
                    folder=self._settings.state_dir / "features",
                    ends=self._ends,
                    patience_seconds=self._settings.progress_timeout.total_seconds(),
                )
                self._workers[place].start()


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
