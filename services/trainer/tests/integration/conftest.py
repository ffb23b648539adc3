"""A small world for the trainer: its tables, its neighbour's one endpoint, and the service."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pyarrow as pa
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from deltalake import write_deltalake

from homeostat.cli.stack.ports import free
from homeostat.cli.testing import SessionStack
from homeostat.common import kafka, topics
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import Pipeline, Snapshot
from homeostat.common.schemas.labels import Outcome
from homeostat.common.schemas.models import ModelVersion
from homeostat.common.schemas.rollouts import Phase, RolloutSnapshot

DAY = 86_400_000
NOW = 1_700_000_000_000  # the replayed clock of these tests (epoch ms)
WAIT_SECONDS = 150.0


def pipeline(name: str, **training: Any) -> Pipeline:
    """Three expression features of the event; labels ripen for a day."""
    return Pipeline.model_validate(
        {
            "name": name,
            "owner": "tests",
            "source": {
                "id": "id",
                "time": "ts",
                "key": "customer",
                "label": {"field": "is_bad", "maturity": "1d", "absent": 0},
            },
            "unit": "customer",
            "fields": {"id": "string", "customer": "string", "a": "float", "b": "float"},
            "features": {
                "a": {"expression": "a"},
                "b": {"expression": "b"},
                "ab": {"expression": "a * b"},
            },
            "training": {
                "budget": {"trials": 3, "seconds": 60},
                "min_rows": 500,
                "cooldown": "1h",
                **training,
            },
        }
    )


@dataclass
class World:
    """One pipeline's tables and topics, and a trainer process that can be started and killed."""

    stack: SessionStack
    folder: Path
    name: str = field(default_factory=lambda: f"toy-{secrets.token_hex(4)}")
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    database_url: str = ""
    mlflow: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    commits: int = 0
    is_features_up: bool = True
    _process: subprocess.Popen[bytes] | None = None
    _versions: dict[str, int] = field(default_factory=dict)
    _server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.environment['TRAINER_PORT']}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def prepare(self) -> None:
        self.database_url = self.stack.fresh_database()
        key_file = self.folder / "signing.pem"
        key_file.write_bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.environment = {
            "KAFKA_BOOTSTRAP_SERVERS": self.stack.kafka,
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.stack.redis_url,
            "OFFLINE_STORE_PATH": str(self.folder / "offline"),
            "HOMEOSTAT_STATE_DIR": str(self.folder / "state"),
            "MODEL_SIGNING_KEY_FILE": str(key_file),
            "TRAINER_FEATURES_URL": f"http://127.0.0.1:{self._server.server_port}",
            "TRAINER_PORT": str(free()),
        }

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def start(self, **environment: str) -> None:
        mlflow = {"MLFLOW_TRACKING_URI": self.mlflow} if self.mlflow else {}
        with (self.folder / "trainer.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "homeostat.trainer"],
                env={**os.environ, **self.environment, **mlflow, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.until(lambda: self._is_ready(), "the trainer is ready")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def log(self) -> str:
        return (self.folder / "trainer.log").read_text()

    def write(
        self,
        *,
        rows: int = 4_000,
        seed: int = 1,
        days: tuple[float, float] = (-30, 0),
        are_labels_wrong: bool = False,
    ) -> None:
        """Append the vectors and outcomes of some days, counted from ``NOW``, to the tables."""
        generator = np.random.default_rng(seed)
        a, b = generator.normal(size=rows), generator.normal(size=rows)
        start, end = (NOW + int(day * DAY) for day in days)
        times = np.sort(generator.integers(start, end, rows))
        logit = (-2.5 if are_labels_wrong else 2.5) * a + a * b - 2.0
        is_bad = generator.random(rows) < 1 / (1 + np.exp(-logit))
        ids = [f"{seed}-{row}" for row in range(rows)]
        spec = pipeline(self.name)
        vectors = {
            "id": ids,
            "unit": ids,
            "event_time": times,
            "intake": times + 100,
            "is_scored": np.ones(rows, bool),
            "offset": np.arange(rows),
            "source_partition": np.zeros(rows, np.int32),
            "definition_hash": [FeatureView(spec).definition_hash] * rows,
        }
        for name, column in (("a", a), ("b", b), ("ab", a * b)):
            vectors[f"value:{name}"] = column
        found = np.flatnonzero(is_bad)
        outcomes = {
            "id": [ids[row] for row in found],
            "label": np.ones(len(found)),
            "event_time": times[found],
            "available_at": times[found] + DAY // 2,
            "version": np.ones(len(found), np.int32),
        }
        for table, columns in (("vectors", vectors), ("outcomes", outcomes)):
            path = self.folder / "offline" / self.name / table
            path.parent.mkdir(parents=True, exist_ok=True)
            write_deltalake(str(path), pa.table(columns), mode="append")
            self._versions[table] = self._versions.get(table, -1) + 1

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.url}/v1/pipelines/{self.name}{path}", timeout=10).json()

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/pipelines/{self.name}{path}", json=body, timeout=10)

    def until(self, holds: Callable[[], Any], what: str, *, seconds: float = WAIT_SECONDS) -> Any:
        """Ask again and again: the service is another process and tells nobody when it is done."""
        deadline = time.monotonic() + seconds
        pause = threading.Event()
        while True:
            try:
                if found := holds():
                    return found
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds:g} s: {what}\n{self.log()[-6000:]}")
            pause.wait(0.1)

    def run_in(self, *states: str, index: int = 0) -> dict[str, Any]:
        """The run ``index`` (newest first), once it is in one of the states."""

        def holds() -> dict[str, Any] | None:
            runs = self.get("/runs").get("runs", [])
            found = runs[index] if len(runs) > index else None
            return found if found and found["state"] in states else None

        run: dict[str, Any] = self.until(holds, f"run {index} is {states}")
        return run

    def _is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the trainer has ended\n{self.log()[-6000:]}")
        return httpx.get(f"{self.url}/readyz").status_code == 200

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        world = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                if f"/{world.name}/" in self.path:  # not for a pipeline of another test
                    world.commits += 1
                body = json.dumps({"versions": world._versions}).encode()
                self.send_response(200 if world.is_features_up else 503)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Requests are nobody's business here."""

        return Handler

    # Kafka

    async def apply(self, spec: Pipeline) -> None:
        named = [(topic.of(), topic) for topic in topics.GLOBAL]
        await kafka.ensure_topics(self.stack.kafka, [*named, *topics.of_pipeline(spec)])
        await self.send(topics.PIPELINES.of(), spec.name, Snapshot(spec, 1).encode())
        self.until(lambda: "positions" in self.get("/progress"), "the pipeline is known")

    async def retire(self) -> None:
        """Take the pipeline away again: the next test's trainer has nothing to do with it."""
        await self.send(topics.PIPELINES.of(), self.name, None)

    async def at(self, instant: int) -> None:
        """Move the replayed clock, by an outcome that becomes known then."""
        topic = topics.OUTCOMES.of(self.name)
        outcome = Outcome("elsewhere", 0.0, instant, instant, {})
        await self.send(topic, "elsewhere", msgspec.json.encode(outcome), available_at=instant)
        self.until(lambda: self.get("/progress")["clock"] == instant, "the clock has moved")

    async def send(
        self, topic: str, key: str, value: bytes | None, *, available_at: int | None = NOW
    ) -> None:
        producer = kafka.producer(self.stack.kafka, client_id="test")
        await producer.start()
        try:
            stamp = (
                [] if available_at is None else [(kafka.AVAILABLE_AT, str(available_at).encode())]
            )
            await producer.send_and_wait(topic, value, key.encode(), headers=stamp)
        finally:
            await producer.stop()

    async def crown(self, version: int) -> None:
        """Tell that a version serves, as the router's judge does."""
        rollout = RolloutSnapshot(
            self.name, "r1", version, epoch=1, phase=Phase.CHAMPION, champion=version
        )
        await self.send(topics.ROLLOUTS.of(), self.name, msgspec.json.encode(rollout))

    async def announced(self) -> list[ModelVersion]:
        """Every record on ``model-versions`` about this pipeline, in order."""
        found = await self.records(topics.MODEL_VERSIONS.of())
        versions = [msgspec.json.decode(value, type=ModelVersion) for value in found if value]
        return [version for version in versions if version.pipeline == self.name]

    async def records(self, topic: str) -> list[bytes]:
        reader = kafka.consumer(topic, bootstrap_servers=self.stack.kafka, client_id="test")
        await reader.start()
        try:
            partitions = list(reader.assignment())
            ends = await reader.end_offsets(partitions)
            values: list[bytes] = []
            for partition in partitions:
                while await reader.position(partition) < ends[partition]:
                    batches = await reader.getmany(partition, timeout_ms=200)
                    values += [record.value for batch in batches.values() for record in batch]
            return values
        finally:
            await reader.stop()


@pytest.fixture
async def world(stack: SessionStack, tmp_path: Path) -> AsyncIterator[World]:
    made = World(stack, tmp_path)
    made.prepare()
    try:
        yield made
        await made.retire()
    finally:
        made.close()
