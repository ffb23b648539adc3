"""A worker process, a pipeline of its own for each test, and an oracle that folds in one go."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.errors import TopicAlreadyExistsError
from redis.asyncio import Redis

from homeostat.cli.testing import SessionStack
from homeostat.common import kafka, topics
from homeostat.common.feature_store.online import (
    Progress,
    decode_progress,
    row_key,
)
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import AggregateSpec, ExpressionSpec, Pipeline, Snapshot, load
from homeostat.common.schemas.vectors import VectorBatch
from homeostat.features.changelog import Marker, Restored
from homeostat.features.enrichment import Stage, vector_batch
from homeostat.features.hops import EventHops, HopCodec, Hops
from homeostat.features.progress import input_key, inputs, read_progress
from homeostat.features.supervision import Role

from .serving_server import PATIENCE_SECONDS, Serving, serving

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Vector:
    """One emitted vector, bit for bit."""

    id: str
    values: bytes
    statuses: bytes
    is_scored: bool


StateRows = dict[str, dict[str, bytes]]  # by entity and key
Vectors = dict[tuple[int, int], Vector]  # by input partition and offset


@dataclass
class Rig:
    """One pipeline of its own on the session's servers."""

    pipeline: Pipeline
    stack: SessionStack
    folder: Path
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @classmethod
    def of(cls, pipeline: Pipeline, stack: SessionStack, folder: Path) -> Rig:
        """With the pipeline's topics, under a name of its own."""
        named = pipeline.model_copy(update={"name": f"{pipeline.name}-{uuid4().hex[:8]}"})
        rig = cls(named, stack, folder)
        asyncio.run(rig.make_topics())
        return rig

    def with_features(self, **added: AggregateSpec | ExpressionSpec) -> Rig:
        """The same pipeline under a changed definition; its workers end with this one's."""
        features = {**self.pipeline.features, **added}
        changed = self.pipeline.model_copy(update={"features": features})
        return replace(self, pipeline=changed)

    async def make_topics(self) -> None:
        """What is missing of the topics of the pipeline and its present definition."""
        digest = self.view.definition_hash
        for named in (
            topics.of_pipeline(self.pipeline),
            topics.of_definition(self.pipeline, digest),
        ):
            await kafka.ensure_topics(self.stack.kafka, named)

    @property
    def name(self) -> str:
        return self.pipeline.name

    @property
    def view(self) -> FeatureView:
        return FeatureView(self.pipeline)

    @property
    def inputs(self) -> list[str]:
        return [*inputs(self.view)]

    def start_worker(
        self,
        *,
        session_timeout: str = "PT6S",
        program: str | None = None,
        role: Role = Role.ALL,
    ) -> subprocess.Popen[bytes]:
        """Start the worker, or a ``program`` of Python that takes its arguments."""
        command = ["-m", "homeostat.features.worker"] if program is None else ["-c", program]
        snapshot = self.folder / f"{self.view.definition_hash}.json"
        snapshot.write_bytes(Snapshot(self.pipeline, 1).encode())
        environment = {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": self.stack.kafka,
            "REDIS_URL": self.stack.redis_url,
            "FEATURES_SESSION_TIMEOUT": session_timeout,
            "FEATURES_COMMIT_INTERVAL": "PT0.3S",
            "FEATURES_HEARTBEAT_INTERVAL": "PT0.5S",
            "OFFLINE_STORE_PATH": str(self.folder / "offline"),
        }
        with (self.folder / "worker.log").open("ab") as log:
            worker = subprocess.Popen(
                [
                    *(sys.executable, *command),
                    *("--pipeline", self.name, "--snapshot", str(snapshot)),
                    *("--role", role.value),
                ],
                env=environment,
                stdout=log,
                stderr=log,
            )
        self.workers.append(worker)
        return worker

    def stop_workers(self) -> list[int]:
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
        statuses = [worker.wait(timeout=60) for worker in self.workers]
        self.workers.clear()
        return statuses

    def kill_worker(self, index: int) -> None:
        worker = self.workers.pop(index)
        worker.kill()
        worker.wait()

    def kill_workers(self) -> None:
        while self.workers:
            self.kill_worker(-1)

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[AIOKafkaProducer]:
        producer = kafka.producer(self.stack.kafka, client_id="test")
        await producer.start()
        try:
            yield producer
        finally:
            await producer.stop()

    async def send(self, events: Sequence[dict[str, object]]) -> None:
        async with self.producer() as producer:
            topic = topics.EVENTS.of(self.name)
            waiting = [
                await producer.send(
                    topic, json.dumps(event).encode(), key=str(event["card"]).encode()
                )
                for event in events
            ]
            await asyncio.gather(*waiting)

    async def label(self, labels: Sequence[tuple[str, float]]) -> None:
        async with self.producer() as producer:
            for name, label in labels:
                value = json.dumps({"id": name, "label": label}).encode()
                await producer.send_and_wait(topics.LABELS.of(self.name), value, key=name.encode())

    async def read(self, topic: str) -> dict[int, list[ConsumerRecord]]:
        """Everything that is on a topic now, committed, by partition."""
        consumer = kafka.consumer(
            bootstrap_servers=self.stack.kafka,
            client_id="test",
            isolation_level="read_committed",
        )
        await consumer.start()
        try:
            parts = [TopicPartition(topic, part) for part in range(4)]
            consumer.assign(parts)
            await consumer.seek_to_beginning(*parts)
            ends = await consumer.end_offsets(parts)
            found: dict[int, list[ConsumerRecord]] = {part.partition: [] for part in parts}
            for part in parts:
                while await consumer.position(part) < ends[part]:
                    for place, records in (await consumer.getmany(timeout_ms=200)).items():
                        found[place.partition] += records
            return found
        finally:
            await consumer.stop()

    async def make_anew(self, topic: str) -> None:
        """Delete a topic, and make it again as it was declared."""
        await kafka.delete_topics(self.stack.kafka, [topic])
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                with suppress(TopicAlreadyExistsError):  # while it is being deleted
                    await self.make_topics()
                consumer = kafka.consumer(bootstrap_servers=self.stack.kafka, client_id="test")
                await consumer.start()
                try:
                    if topic in await consumer.topics():
                        return
                finally:
                    await consumer.stop()

    async def expire(self, topic: str) -> int:
        """Delete all that is on a topic now, as its retention would; how many records no marker
        has taken in."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.stack.kafka)
        consumer = kafka.consumer(bootstrap_servers=self.stack.kafka, client_id="test")
        await admin.start()
        await consumer.start()
        try:
            parts = [TopicPartition(topic, part) for part in range(4)]
            ends = await consumer.end_offsets(parts)
            await admin.delete_records(
                {part: RecordsToDelete(before_offset=end) for part, end in ends.items()}
            )
            markers = await self.markers()
            return sum(max(0, end - markers[part].position) for part, end in ends.items())
        finally:
            await consumer.stop()
            await admin.close()

    async def markers(self) -> dict[TopicPartition, Marker]:
        """The committed marker of every input partition."""
        found: dict[TopicPartition, Marker] = {}
        state_of = {name: topics.POSITIONS.of(self.name) for name in self.inputs[:2]}
        for entity, log in self.view.logs.items():
            state_of[log] = self.state_topic(entity)
        for topic, state in state_of.items():
            key = b"\x00marker:" + topic.encode()
            for part, records in (await self.read(state)).items():
                restored = Restored()
                for record in records:
                    restored.take(key, record.key, record.value)
                found[TopicPartition(topic, part)] = restored.marker
        return found

    def state_topic(self, entity: str) -> str:
        return topics.STATE.of(self.name, entity, self.view.definition_hash)

    async def online_rows(self, redis: Redis, entity: str) -> dict[str, bytes]:
        """The rows of an entity in the online store, by key."""
        prefix = row_key(self.name, self.view.definition_hash, entity, "")
        keys = [key async for key in redis.scan_iter(match=prefix + b"*", count=1_000)]
        values: list[bytes] = await redis.mget(keys) if keys else []  # type: ignore[assignment]  # not decoded
        names = [key.removeprefix(prefix).decode() for key in keys]
        return dict(zip(names, values, strict=True))

    async def forget_online(self, redis: Redis) -> None:
        """Take everything of this pipeline out of the online store, at once."""
        keys = [key async for key in redis.scan_iter(match=f"*:{self.name}:*", count=1_000)]
        await redis.delete(*keys)

    async def progress(self, redis: Redis, entity: str) -> list[Progress | None]:
        """What the online store says of each partition of an entity's log."""
        keys = [input_key(self.view, entity, part) for part in range(4)]
        values: list[bytes | None] = await redis.mget(keys)  # type: ignore[assignment]  # not decoded
        return [None if value is None else decode_progress(value) for value in values]

    async def drained(self) -> None:
        """Wait until everything that is on every input has been dealt with, hop after hop."""
        redis = Redis.from_url(self.stack.redis_url)
        consumer = kafka.consumer(bootstrap_servers=self.stack.kafka, client_id="test")
        await consumer.start()
        try:
            while not await self._is_drained(redis, consumer):
                self.check_alive()
        finally:
            await consumer.stop()
            await redis.aclose()

    async def _is_drained(self, redis: Redis, consumer: AIOKafkaConsumer) -> bool:
        """Hops in order: what one has left behind is on the topic of the next."""
        view = self.view
        for topic in self.inputs:
            ends = await consumer.end_offsets([TopicPartition(topic, part) for part in range(4)])
            progress = await read_progress(redis, view, partitions=4)
            positions = progress["positions"][topic]  # type: ignore[index]  # a document
            if any(positions.get(str(place.partition), -1) < end for place, end in ends.items()):
                return False
        return True

    def check_alive(self) -> None:
        if any(worker.poll() is not None for worker in self.workers):
            raise AssertionError((self.folder / "worker.log").read_text()[-4000:])

    async def counters(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for marker in (await self.markers()).values():
            total.update(marker.counters)
        return total

    async def vectors(self) -> dict[tuple[int, int], Vector]:
        """Emitted vectors by source identity; one that was sent twice has the same bits."""
        found: dict[tuple[int, int], Vector] = {}
        digest = self.view.definition_hash
        for records in (await self.read(topics.FEATURES.of(self.name))).values():
            for batch in (VectorBatch.decode(record.value) for record in records):
                if batch.definition_hash != digest:
                    continue
                for source, vector in _by_source(batch).items():
                    assert found.setdefault(source, vector) == vector
        return found

    async def state_rows(self, entity: str) -> dict[str, bytes]:
        rows: dict[str, bytes] = {}
        for records in (await self.read(self.state_topic(entity))).values():
            restored = Restored()
            for record in records:
                restored.take(b"", record.key, record.value)
            rows |= restored.rows
        return rows

    async def folded_anew(
        self, expired: Mapping[int, Sequence[ConsumerRecord]] | None = None
    ) -> tuple[dict[str, dict[str, bytes]], dict[tuple[int, int], Vector]]:
        """The oracle: each entity's log, without repetitions, through a fold of its own.

        ``expired`` is what the log of the key does not hold any more.
        """
        rows: dict[str, dict[str, bytes]] = {}
        vectors: dict[tuple[int, int], Vector] = {}
        view, codec = self.view, HopCodec(self.view)
        for entity in view.entities:
            rows[entity] = {}
            is_first, is_last = entity == view.entities[0], entity == view.entities[-1]
            for part, records in (await self.read(view.logs[entity])).items():
                if is_first and expired is not None:
                    records = [*expired[part], *records]
                stage = Stage(view, entity)
                ids: set[str] = set()
                seen: set[tuple[str, int, int]] = set()
                for hops, identity in _one_by_one(codec, records):
                    is_event = isinstance(hops, EventHops)
                    name = hops.columns.ids[0] if isinstance(hops, EventHops) else ""
                    if identity in seen or (is_event and is_first and name in ids):
                        continue
                    seen.add(identity)
                    ids.add(name)
                    for _, events in stage.pass_through([hops]):
                        if events is not None and is_last:
                            batch = vector_batch(view, events, partition=part)
                            vectors.update(_by_source(batch))
                numbers = np.arange(len(stage.state), dtype=np.int32)
                packed = stage.fold.pack(stage.state, numbers)
                rows[entity] |= dict(zip(stage.state.keys(numbers), packed, strict=True))
        return rows, vectors


def _by_source(batch: VectorBatch) -> Vectors:
    return {
        (batch.partition, place): Vector(
            batch.ids[row],
            batch.values[row].tobytes(),
            batch.statuses[row].tobytes(),
            bool(batch.is_scored[row]),
        )
        for row, place in enumerate(batch.offsets.tolist())
    }


def _one_by_one(
    codec: HopCodec, records: Sequence[ConsumerRecord]
) -> Iterator[tuple[Hops, tuple[str, int, int]]]:
    """The hops of a log, each alone, with the identity of its immediate input."""
    for record in records:
        sent = codec.decode(record.value, record.offset)
        for row, place in enumerate(sent.sources.tolist()):
            yield sent.hops.take(np.array([row])), (sent.stream, sent.source, place)


@pytest.fixture
def open_rig(stack: SessionStack, tmp_path: Path) -> Iterator[Callable[[Pipeline], Rig]]:
    """Makes the pipeline's topics, under a name of its own, and ends its workers."""
    rigs: list[Rig] = []

    def opened(pipeline: Pipeline) -> Rig:
        rigs.append(Rig.of(pipeline, stack, tmp_path))
        return rigs[-1]

    yield opened
    for rig in rigs:
        rig.kill_workers()


@pytest.fixture
async def redis(stack: SessionStack) -> AsyncIterator[Redis]:
    client = Redis.from_url(stack.redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def cards() -> Pipeline:
    return load(HERE / "pipeline.yaml")


@pytest.fixture
def rig(open_rig: Callable[[Pipeline], Rig], cards: Pipeline) -> Rig:
    return open_rig(cards)


@pytest.fixture(scope="module")
def server(stack: SessionStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server whose worker has folded three events, a second apart, the last a minute ago."""
    rig = Rig.of(load(HERE / "pipeline.yaml"), stack, tmp_path_factory.mktemp("features"))
    with serving(rig) as running:
        asyncio.run(_folded(rig, running.events))
        yield running


async def _folded(rig: Rig, events: Sequence[dict[str, object]]) -> None:
    await rig.send(events)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await rig.drained()
