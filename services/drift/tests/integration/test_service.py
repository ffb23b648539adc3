"""The process on a real Kafka and Postgres: alerts, and what a kill -9 leaves."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from aiokafka import TopicPartition

from homeostat.cli.stack import ports
from homeostat.cli.testing import SessionStack
from homeostat.common import db, kafka, topics
from homeostat.common.pipeline import Snapshot
from homeostat.common.schemas.alerts import Alert, Cause
from homeostat.common.schemas.ledger import LedgerBatch, encode_row
from homeostat.common.schemas.rollouts import Phase, RolloutSnapshot
from homeostat.drift.monitor import Monitor, State
from homeostat.drift.store import Store

pytestmark = pytest.mark.integration

SECONDS = 60


class Bench:
    """A pipeline's topics, a producer, and the service as a process of its own."""

    def __init__(self, stack: SessionStack, folder: Path, traffic: Any, database: str) -> None:
        self.stack = stack
        self.folder = folder
        self.traffic = traffic
        self.database = database
        self.port = ports.free()
        self.producer = kafka.producer(stack.kafka, client_id="test")
        self.process: asyncio.subprocess.Process | None = None

    async def prepare(self) -> None:
        pipeline = self.traffic.pipeline()
        declared = [(each.of(), each) for each in topics.GLOBAL]
        await kafka.ensure_topics(self.stack.kafka, [*declared, *topics.of_pipeline(pipeline)])
        await self.producer.start()
        version = self.traffic.version()
        rollout = RolloutSnapshot(
            pipeline=pipeline.name,
            rollout="r",
            generation=1,
            epoch=1,
            phase=Phase.CHAMPION,
            champion=version.version,
        )
        name = pipeline.name
        for topic, key, value in (
            (topics.PIPELINES, name, Snapshot(pipeline, 1).encode()),
            (topics.MODEL_VERSIONS, f"{name}/1", msgspec.json.encode(version)),
            (topics.ROLLOUTS, name, msgspec.json.encode(rollout)),
        ):
            await self.producer.send_and_wait(topic.of(), value, key=key.encode())

    async def start(self) -> None:
        with (self.folder / "log").open("a") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "homeostat.drift",
                env={
                    **os.environ,
                    "KAFKA_BOOTSTRAP_SERVERS": self.stack.kafka,
                    "DATABASE_URL": self.database,
                    "HOMEOSTAT_STATE_DIR": str(self.folder),
                    "DRIFT_PORT": str(self.port),
                },
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
            )

    async def kill(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return await self.process.wait()

    async def send(self, hours: range, **changes: Any) -> None:
        """Hours of traffic under replay: outcomes once their time has come."""
        for hour in hours:
            predictions, outcomes = self.traffic.hour(hour, **changes)
            for value in LedgerBatch.of(predictions[1:]).encode():
                await self.send_record(topics.PREDICTIONS, value, available_at=predictions[-1].at)
            await self.send_record(
                topics.PREDICTIONS, encode_row(predictions[0]), available_at=predictions[0].at
            )
            for outcome in outcomes:
                await self.send_record(
                    topics.OUTCOMES,
                    msgspec.json.encode(outcome),
                    available_at=predictions[-1].at,
                    key=outcome.id,
                )
        await self.producer.flush()

    async def send_record(
        self, topic: topics.Topic, value: bytes, *, available_at: int, key: str = "u"
    ) -> None:
        await self.producer.send(
            topic.of(self.traffic.name),
            value,
            key=key.encode(),
            headers=[(kafka.AVAILABLE_AT, str(available_at).encode())],
        )

    async def get(self, path: str) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.port}/v1/pipelines/{self.traffic.name}/{path}"
        async with httpx.AsyncClient() as client:
            response = await client.get(url, timeout=5)
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer

    async def caught_up(self) -> None:
        """Wait until the service reports both topics processed to their ends."""
        ends = await self.ends(topics.PREDICTIONS) | await self.ends(topics.OUTCOMES)

        async def is_there() -> bool:
            positions = (await self.get("progress"))["positions"]
            return all(
                positions.get(part.topic, {}).get(str(part.partition)) == end
                for part, end in ends.items()
            )

        await until(is_there)

    async def ends(self, topic: topics.Topic) -> dict[TopicPartition, int]:
        name = topic.of(self.traffic.name)
        reader = kafka.consumer(bootstrap_servers=self.stack.kafka, client_id="test")
        await reader.start()
        try:
            partitions = [TopicPartition(name, number) for number in range(4)]
            ends: dict[TopicPartition, int] = await reader.end_offsets(partitions)
            return ends
        finally:
            await reader.stop()

    async def alerts(self) -> list[Alert]:
        """Everything on the alerts topic."""
        ends = await self.ends(topics.ALERTS)
        reader = kafka.consumer(bootstrap_servers=self.stack.kafka, client_id="test")
        await reader.start()
        found: list[Alert] = []
        try:
            reader.assign(list(ends))
            await reader.seek_to_beginning()
            while any([await reader.position(part) < end for part, end in ends.items()]):
                for batch in (await reader.getmany(timeout_ms=200)).values():
                    found += [msgspec.json.decode(record.value, type=Alert) for record in batch]
        finally:
            await reader.stop()
        return found

    async def state(self) -> State:
        """What the database holds."""
        database = db.engine(self.database, application="test")
        try:
            width = Monitor(self.traffic.pipeline()).slice_millis
            return (await Store(database).load(self.traffic.name, width=width)).state
        finally:
            await database.dispose()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a condition of the other process, which can only be asked."""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                if await condition():
                    return
            except httpx.HTTPError:
                pass  # not up yet
            await asyncio.sleep(0.05)


@asynccontextmanager
async def running(
    stack: SessionStack, folder: Path, traffic: Any, name: str
) -> AsyncIterator[Bench]:
    traffic.name = name
    bench = Bench(stack, folder, traffic, stack.fresh_database())
    await bench.prepare()
    await bench.start()
    try:
        yield bench
    finally:
        if bench.process is not None and bench.process.returncode is None:
            await bench.kill()
        await bench.producer.stop()


async def test_a_shift_on_the_ledger_becomes_one_alert_on_the_topic(
    stack: SessionStack, tmp_path: Path, traffic: Any
) -> None:
    async with running(stack, tmp_path, traffic, "drift-shift") as bench:
        await bench.send(range(4))
        await bench.send(range(4, 8), shift=1.0)
        await bench.caught_up()

        alerts = await bench.alerts()
        answer = await bench.get("drift")

        assert [(each.cause, each.retrain) for each in alerts] == [(Cause.COVARIATE, True)]
        kept = msgspec.convert((await bench.get("alerts"))["alerts"], list[Alert])
        assert kept == alerts
        verdicts = {each["feature"]: each["verdict"] for each in answer["windows"][0]["features"]}
        assert verdicts == {"amount_now": "drifted", "visits": "stable", "score": "stable"}
        assert await bench.kill(signal.SIGTERM) == 0


async def test_killed_in_the_middle_it_resumes_to_the_same_state_and_one_alert(
    stack: SessionStack, tmp_path: Path, traffic: Any
) -> None:
    async with running(stack, tmp_path, traffic, "drift-kill") as bench:
        for hour in (0, 5):
            await bench.send(range(hour, hour + 4), shift=float(hour > 0))
            await bench.caught_up()
            await bench.send(range(hour + 4, hour + 5), shift=float(hour > 0))
            await bench.kill()  # at work: the last hour is read, committed or neither
            await bench.start()
        await bench.caught_up()

        alerts = await bench.alerts()

        assert [each.cause for each in {each.id: each for each in alerts}.values()] == [
            Cause.COVARIATE
        ]
        state = await bench.state()
        rows = [row for each in state.slices.values() for row in each.rows]
        assert len(rows) == traffic.events
        assert all(row["version"] == 1 for row in rows)
        window = state.windows[1]
        assert window.rows + state.reports[1].rows == 2 * traffic.per_hour


async def test_rows_scored_again_after_a_crash_count_once(
    stack: SessionStack, tmp_path: Path, traffic: Any
) -> None:
    async with running(stack, tmp_path, traffic, "drift-again") as bench:
        predictions, _ = traffic.hour(0)
        for value in list(LedgerBatch.of(predictions).encode()) * 3:
            await bench.send_record(topics.PREDICTIONS, value, available_at=predictions[-1].at)
        await bench.producer.flush()
        await bench.caught_up()

        answer = await bench.get("drift")

        assert answer["filling"]["1"]["rows"] == len(predictions)
