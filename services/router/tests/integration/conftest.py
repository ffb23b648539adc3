"""Real processes between a real Kafka and an inference server that misbehaves on demand."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import grpc
import httpx
import msgspec
import pytest

from homeostat.cli.testing import SessionStack
from homeostat.common import kafka, topics
from homeostat.common.pipeline import Pipeline, Snapshot
from homeostat.common.proto import inference_pb2 as pb
from homeostat.common.proto import inference_pb2_grpc as stubs
from homeostat.common.schemas.models import ModelVersion
from homeostat.common.schemas.rollouts import Phase, RolloutSnapshot

WAIT_SECONDS = 150  # a start takes three seconds, on a machine busy with all else two minutes
POLL = threading.Event()  # never set: waiting for it is a pause between two questions


class Behaviour(Enum):
    FINE = "fine"
    ERRS = "errs"
    HANGS = "hangs"
    NOT_A_NUMBER = "not a number"
    OUT_OF_RANGE = "out of range"
    WRONG_SHAPE = "wrong shape"


@dataclass
class Models(stubs.InferenceServicer):
    """An inference server: a score is a hundredth of the version, unless that misbehaves."""

    behaviours: dict[int, Behaviour] = field(default_factory=dict)
    rows: Counter[tuple[int, str]] = field(default_factory=Counter)
    seen: list[pb.ScoreRow] = field(default_factory=list)
    target: str = ""

    def misbehave(self, version: int, behaviour: str) -> None:
        self.behaviours[version] = Behaviour[behaviour]

    def ScoreBatch(  # noqa: N802 - gRPC's name
        self, request: pb.ScoreBatchRequest, context: Any
    ) -> pb.ScoreBatchResponse:
        behaviour = self.behaviours.get(request.version, Behaviour.FINE)
        self.rows[request.version, request.variant] += len(request.rows)
        self.seen.extend(request.rows)
        if behaviour is Behaviour.ERRS:
            context.abort(grpc.StatusCode.INTERNAL, "the model failed")
        if behaviour is Behaviour.HANGS:
            has_ended = threading.Event()
            context.add_callback(has_ended.set)
            has_ended.wait()
        score = {
            Behaviour.NOT_A_NUMBER: math.nan,
            Behaviour.OUT_OF_RANGE: 7.0,
        }.get(behaviour, request.version / 100)
        rows = [
            pb.ScoredRow(
                prediction_id=row.prediction_id,
                status=200,
                score=score,
                decision=score >= 0.5,
                values=[1.0, math.nan],
                statuses=bytes([0, 1]),
            )
            for row in request.rows
        ]
        return pb.ScoreBatchResponse(
            version=request.version,
            features=["orders_1h", "amount_mean_1h"],
            threshold=0.5,
            rows=rows[1:] if behaviour is Behaviour.WRONG_SHAPE else rows,
        )


@pytest.fixture(scope="module")
def models() -> Iterator[Models]:
    server = grpc.server(ThreadPoolExecutor(16))
    servicer = Models()
    stubs.add_InferenceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call] # generated
    servicer.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield servicer
    server.stop(grace=None).wait()


class Board:
    """Publishes to the global topics as the command line, the trainer and the judge would."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._producer = kafka.producer(bootstrap_servers, client_id="tests")
        self._published: list[str] = []

    async def start(self) -> None:
        await kafka.ensure_topics(
            self._bootstrap_servers, [(topic.of(), topic) for topic in topics.GLOBAL]
        )
        await self._producer.start()

    async def stop(self) -> None:
        """Take the pipelines away again: the next test's judge has nothing to do with them."""
        for name in self._published:
            await self.send(topics.PIPELINES.of(), name, None)
        await self._producer.stop()

    async def pipeline(self, pipeline: Pipeline) -> None:
        await kafka.ensure_topics(self._bootstrap_servers, topics.of_pipeline(pipeline))
        value = Snapshot(pipeline, 1).encode()
        self._published.append(pipeline.name)
        await self.send(topics.PIPELINES.of(), pipeline.name, value)

    async def version(self, version: ModelVersion) -> None:
        key = f"{version.pipeline}/{version.version}"
        await self.send(topics.MODEL_VERSIONS.of(), key, msgspec.json.encode(version))

    async def rollout(self, pipeline: str, **members: Any) -> RolloutSnapshot:
        snapshot = RolloutSnapshot(
            **{
                "pipeline": pipeline,
                "rollout": f"{pipeline}-2",
                "generation": 1,
                "epoch": 1,
                "phase": Phase.CANARY,
                "champion": 1,
                "challenger": 2,
                **members,
            }
        )
        await self.send(topics.ROLLOUTS.of(), pipeline, msgspec.json.encode(snapshot))
        return snapshot

    async def send(
        self, topic: str, key: str, value: bytes | None, headers: tuple[tuple[str, bytes], ...] = ()
    ) -> None:
        await self._producer.send_and_wait(topic, value, key.encode(), headers=list(headers))


@pytest.fixture
async def board(stack: SessionStack) -> AsyncIterator[Board]:
    board = Board(stack.kafka)
    await board.start()
    yield board
    await board.stop()


@dataclass
class Process:
    """A process of the service, and its HTTP address."""

    module: str
    environment: dict[str, str]
    url: str
    log: Path
    child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers; one that runs is left alone."""
        if self.is_running:
            return
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-m", self.module],
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
            )
        self.until("/livez", lambda answer: answer.status_code == 200)

    @property
    def is_running(self) -> bool:
        return self.child is not None and self.child.poll() is None

    def until(self, path: str, holds: Callable[[httpx.Response], bool]) -> httpx.Response:
        """Poll a route until its answer is as wanted."""
        last: object = None
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline and self.is_running:
            try:
                last = answer = httpx.get(f"{self.url}{path}")
                if holds(answer):
                    return answer
            except httpx.TransportError as error:
                last = error
            POLL.wait(0.05)
        raise AssertionError(f"{path} last said {last!r}: {self.log.read_text()[-4000:]}")

    def kill(self) -> None:
        assert self.child is not None
        self.child.kill()
        self.child.wait()

    def terminate(self) -> int:
        assert self.child is not None
        self.child.terminate()
        return self.child.wait(20)

    def stop(self) -> None:
        if self.is_running:
            self.kill()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def router_process(kafka_address: str, target: str, folder: Path, **environment: str) -> Process:
    port = free_port()
    return Process(
        "homeostat.router",
        {
            "ROUTER_PORT": str(port),
            "ROUTER_INFERENCE_TARGET": target,
            # Two busy cores are no place to measure: these tests are about who answers.
            "ROUTER_REQUEST_TIMEOUT": "PT3S",
            "ROUTER_CHALLENGER_TIMEOUT": "PT0.3S",
            "ROUTER_REPLAY_TOKEN": "replay-token",
            "KAFKA_BOOTSTRAP_SERVERS": kafka_address,
            "HOMEOSTAT_STATE_DIR": str(folder / "router"),
            **environment,
        },
        f"http://127.0.0.1:{port}",
        folder / "router.log",
    )


@pytest.fixture(scope="module")
def router(
    stack: SessionStack, models: Models, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    """One router for all tests that leave it alive."""
    process = router_process(stack.kafka, models.target, tmp_path_factory.mktemp("router"))
    process.start()
    yield process
    process.stop()


@pytest.fixture
def make_router(
    stack: SessionStack, models: Models, tmp_path: Path
) -> Iterator[Callable[..., Process]]:
    """A router of the test's own, not started; variables may be overridden."""
    made: list[Process] = []

    def make(**environment: str) -> Process:
        made.append(router_process(stack.kafka, models.target, tmp_path, **environment))
        return made[-1]

    yield make
    for process in made:
        process.stop()


def judge_process(stack: SessionStack, folder: Path, database_url: str) -> Process:
    """A judge with short terms."""
    port = free_port()
    return Process(
        "homeostat.router.judge",
        {
            "ROUTER_JUDGE_PORT": str(port),
            "ROUTER_LEASE_TTL": "PT3S",
            "ROUTER_LEASE_RENEWAL": "PT1S",
            "KAFKA_BOOTSTRAP_SERVERS": stack.kafka,
            "DATABASE_URL": database_url,
            "HOMEOSTAT_STATE_DIR": str(folder / f"judge-{port}"),
        },
        f"http://127.0.0.1:{port}",
        folder / f"judge-{port}.log",
    )


@pytest.fixture(scope="module")
def judge(stack: SessionStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One judge for all tests that leave it alive; whoever needs it starts it."""
    process = judge_process(stack, tmp_path_factory.mktemp("judge"), stack.fresh_database())
    yield process
    process.stop()


@pytest.fixture
def make_judge(
    stack: SessionStack, judge: Process, tmp_path: Path
) -> Iterator[Callable[[str], Process]]:
    """A judge of the test's own on the given database, not started.

    The shared one is stopped: judges of two databases on one Kafka would fence each other.
    """
    judge.stop()
    made: list[Process] = []

    def make(database_url: str) -> Process:
        made.append(judge_process(stack, tmp_path, database_url))
        return made[-1]

    yield make
    for process in made:
        process.stop()
