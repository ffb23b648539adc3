"""A real inference process between a real Kafka and Redis, and all that it reads from them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import msgspec
import numpy as np
import pytest
from redis import Redis

from homeostat.cli.publishing import publish
from homeostat.cli.stack import ports
from homeostat.cli.testing import (
    ServiceProcess,
    SessionStack,
    StoppableRedis,
    running_service,
)
from homeostat.common import artifacts, kafka, topics
from homeostat.common.event_columns import event_hashes
from homeostat.common.feature_store import online
from homeostat.common.feature_store.online import Progress
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import Pipeline
from homeostat.common.proto import inference_pb2 as pb
from homeostat.common.proto import inference_pb2_grpc as stubs
from homeostat.common.schemas.ledger import LedgerBatch
from homeostat.common.schemas.rollouts import Phase, RolloutSnapshot

PATIENCE_SECONDS = 100.0


def now_millis() -> int:
    return time.time_ns() // 1_000_000


class World:
    """What the other services would do: publish pipelines, announce versions, decide, fold."""

    def __init__(self, stack: SessionStack, *, redis_url: str = "") -> None:
        self.stack = stack
        self.redis = Redis.from_url(redis_url or stack.redis_url)
        self._generation = 0

    def with_redis(self, url: str) -> World:
        """The same world with an online store elsewhere."""
        return World(self.stack, redis_url=url)

    def publish(self, pipeline: Pipeline) -> None:
        asyncio.run(publish(pipeline, bootstrap_servers=self.stack.kafka))
        self._ensure([(topic.of(), topic) for topic in topics.GLOBAL])

    def _ensure(self, declared: Sequence[tuple[str, topics.Topic]]) -> None:
        asyncio.run(kafka.ensure_topics(self.stack.kafka, declared))

    def send(self, topic: str, *records: tuple[bytes | None, bytes]) -> None:
        async def run() -> None:
            producer = kafka.producer(self.stack.kafka, client_id="test")
            await producer.start()
            try:
                for key, value in records:
                    await producer.send_and_wait(topic, value, key=key)
            finally:
                await producer.stop()

        asyncio.run(run())

    def announce(self, trained: Any, *, store: bool = True) -> None:
        version = trained.version
        if store:
            self.redis.set(artifacts.redis_key(version.artifact.sha256), trained.content)
        key = f"{version.pipeline}/{version.version}".encode()
        self.send(topics.MODEL_VERSIONS.of(), (key, msgspec.json.encode(version)))

    def decide(self, pipeline: str, champion: int | None, **more: Any) -> RolloutSnapshot:
        self._generation += 1
        snapshot = RolloutSnapshot(
            pipeline=pipeline,
            rollout=f"{pipeline}-salt",
            generation=self._generation,
            epoch=1,
            phase=more.pop("phase", Phase.IDLE),
            champion=champion,
            **more,
        )
        self.send(topics.ROLLOUTS.of(), (pipeline.encode(), msgspec.json.encode(snapshot)))
        return snapshot

    def fold(self, pipeline: Pipeline, events: Sequence[Mapping[str, Any]]) -> None:
        """Fold events into the online store, as the features service does."""
        view = FeatureView(pipeline)
        for entity, fold in view.folds.items():
            state = fold.new_state()
            keyed = [event for event in events if event.get(entity)]
            keys = [event[entity] for event in keyed]
            columns = {name: [float(event[name]) for event in keyed] for name in fold.fields}
            batch = fold.events(
                [round(event["at"] * 1000) for event in keyed],
                event_hashes([event["id"] for event in keyed]),
                columns,
            )
            known = list(dict.fromkeys(keys))
            numbers = state.intern(known)
            position = dict(zip(known, numbers.tolist(), strict=True))
            fold.fold_events(state, np.array([position[key] for key in keys], np.int32), batch)
            for key, packed in zip(known, fold.pack(state, numbers), strict=True):
                self.redis.set(
                    online.row_key(pipeline.name, view.definition_hash, entity, key), packed
                )
        self.progress(pipeline)

    def progress(self, pipeline: Pipeline, *, age_millis: int = 0) -> None:
        """Every partition of every entity says that it is current."""
        view = FeatureView(pipeline)
        stamp = now_millis() - age_millis
        for entity in view.entities:
            for partition in range(4):
                self.redis.set(
                    online.progress_key(pipeline.name, view.definition_hash, entity, partition),
                    online.encode_progress(Progress(1, 1, stamp, stamp)),
                )

    def ledger(self, pipeline: str, *, rows: int, seconds: float = 20) -> LedgerBatch:
        """The whole ledger, once it has that many different predictions."""
        return asyncio.run(self._ledger(pipeline, rows, seconds))

    async def _ledger(self, pipeline: str, rows: int, seconds: float) -> LedgerBatch:
        reader = kafka.consumer(
            topics.PREDICTIONS.of(pipeline), bootstrap_servers=self.stack.kafka, client_id="test"
        )
        await reader.start()
        parts: list[LedgerBatch] = []
        ids: set[str] = set()
        try:
            async with asyncio.timeout(seconds):
                while len(ids) < rows:
                    for batch in (await reader.getmany(timeout_ms=200)).values():
                        found = [LedgerBatch.decode(record.value) for record in batch]
                        parts.extend(found)
                        ids.update(*(part.strings("prediction_id") for part in found))
        finally:
            await reader.stop()
        return LedgerBatch.concat(parts)


@dataclass(frozen=True)
class Server:
    """A running service, and its addresses."""

    service: ServiceProcess
    target: str

    def predict(self, pipeline: str, body: bytes, **headers: str) -> httpx.Response:
        url = f"{self.service.url}/v1/pipelines/{pipeline}/predict"
        return httpx.post(url, content=body, headers=headers, timeout=10)

    def models(self, pipeline: str) -> dict[int, dict[str, Any]]:
        answer = httpx.get(f"{self.service.url}/v1/pipelines/{pipeline}/models", timeout=10)
        if answer.status_code != 200:
            return {}
        return {model["version"]: model for model in answer.json()["models"]}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        total = 0.0
        for line in httpx.get(f"{self.service.url}/metrics", timeout=10).text.splitlines():
            wanted = [f'{key}="{value}"' for key, value in labels.items()]
            if line.startswith((f"{name}{{", f"{name} ")) and all(item in line for item in wanted):
                total += float(line.rpartition(" ")[2])
        return total

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        pause = 0.01
        while not condition():
            assert time.monotonic() < deadline, self.service.log.read_text()[-4000:]
            time.sleep(pause)
            pause = min(pause * 2, 0.2)

    def wait_for_champion(self, pipeline: str, version: int) -> None:
        self.wait_until(
            lambda: self.models(pipeline).get(version, {}).get("is_champion", False) is True
        )

    def wait_for_state(self, pipeline: str, version: int, state: str) -> dict[str, Any]:
        self.wait_until(lambda: self.models(pipeline).get(version, {}).get("state") == state)
        return self.models(pipeline)[version]


@contextmanager
def serving(stack: SessionStack, folder: Path, workshop: Any, **env: str) -> Iterator[Server]:
    port = ports.choose({"grpc": 0}, ports.PortPolicy.FREE)["grpc"]
    environment = {
        "INFERENCE_GRPC_PORT": str(port),
        "MODEL_VERIFY_KEY_FILE": str(workshop.public_key_file),
        # The machine of a test run is busier than one that serves.
        "INFERENCE_REDIS_TIMEOUT": "PT0.5S",
        "INFERENCE_PROBE_TIMEOUT": "PT90S",
        "INFERENCE_SESSION_TIMEOUT": "PT3S",
        **env,
    }
    with running_service(
        "homeostat.inference", stack, folder, port_variable="INFERENCE_PORT", env=environment
    ) as service:
        yield Server(service, f"127.0.0.1:{port}")


@pytest.fixture(scope="module")
def world(stack: SessionStack) -> World:
    return World(stack)


@pytest.fixture(scope="module")
def server(
    stack: SessionStack, workshop: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with serving(stack, tmp_path_factory.mktemp("inference"), workshop) as running:
        yield running


@pytest.fixture
def start_server(stack: SessionStack, workshop: Any, tmp_path: Path) -> Callable[..., Any]:
    """Start one more server, with settings of its own: ``with start_server(...) as server``."""
    return lambda **env: serving(stack, tmp_path, workshop, **env)


@pytest.fixture
def stoppable_redis() -> Iterator[StoppableRedis]:
    redis = StoppableRedis()
    redis.start()
    yield redis
    redis.stop()


@pytest.fixture
async def score_batch(server: Server) -> AsyncIterator[Callable[..., Any]]:
    async with grpc.aio.insecure_channel(server.target) as channel:
        stub: Any = stubs.InferenceStub(channel)  # type: ignore[no-untyped-call]  # generated

        async def call(pipeline: str, *rows: pb.ScoreRow, **more: Any) -> pb.ScoreBatchResponse:
            answer: pb.ScoreBatchResponse = await stub.ScoreBatch(
                pb.ScoreBatchRequest(pipeline=pipeline, rows=rows, **more), timeout=10
            )
            return answer

        yield call
