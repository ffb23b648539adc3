"""From Kafka to window features: our worker beside its peers, one core each, in one run.

``make bench-features`` installs the peers into an environment of their own and runs this. The
servers have one core, the contender the other. Every contender reads the same topic: a day of
payments of one partition, in order, five windows of one entity; ours also ten of each of two.

The work is not equal, and the difference is in the peers' favour: ours writes every row to Redis
and to a changelog in transactions, and each event's vector to Kafka; peers write nothing anywhere
but in their own state, and are timed on their first events, while that is small.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from aiokafka import AIOKafkaConsumer, TopicPartition
from redis.asyncio import Redis

from bench.cores import pin_servers, pinned
from bench.payments import payments, publish_events
from homeostat.cli.testing import SessionStack, running_stores
from homeostat.common import kafka, topics
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import Pipeline, Snapshot, load
from homeostat.features.hops import HopCodec
from homeostat.features.progress import read_progress

HERE = Path(__file__).parent
PEERS = HERE / "peers"
CUSTOMERS = 42_000
POLL_SECONDS = 0.05
PATIENCE_SECONDS = 600
OURS, OURS_TWO = "Homeostat", "Homeostat, 2 entities x 10"
PIPELINES = {OURS: "features.yaml", OURS_TWO: "features_two.yaml"}


@dataclass(frozen=True)
class Contender:
    name: str
    command: tuple[str, ...]  # a file of `peers` and its arguments
    events: int  # as many as it manages in about half a minute


PEER_CONTENDERS = (
    Contender("aiokafka alone, one decode a record", ("features_floor.py",), 400_000),
    Contender("Quix Streams, hopping", ("features_quix.py", "hopping"), 4_000),
    Contender("Quix Streams, tumbling", ("features_quix.py", "tumbling"), 40_000),
    Contender("Bytewax, sliding", ("features_bytewax.py",), 10_000),
    Contender("Faust tables, hopping", ("features_faust.py", "worker", "--without-web"), 300),
)


@dataclass(frozen=True)
class Figure:
    events: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        return self.events / self.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=400_000, help="how many ours is given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers-python", type=Path, help="without it, ours alone is measured")
    arguments = parser.parse_args()
    os.environ["KAFKA_PARTITIONS"] = "1"
    with tempfile.TemporaryDirectory() as folder, running_stores(Path(folder) / "stack") as stack:
        bench = Bench(stack, Path(folder), arguments.events)
        pin_servers()
        figures: dict[str, list[Figure]] = {}
        for number in range(arguments.rounds):
            for name in PIPELINES:
                figures.setdefault(name, []).append(bench.ours(name, number))
            for peer in PEER_CONTENDERS if arguments.peers_python else ():
                figures.setdefault(peer.name, []).append(bench.peer(peer, arguments.peers_python))
    report(figures)


class Bench:
    """One topic of events, and those who read it."""

    def __init__(self, stack: SessionStack, folder: Path, events: int) -> None:
        self._stack = stack
        self._folder = folder
        self._count = events
        self._payments = payments(events, customers=CUSTOMERS)
        self._pipelines = {name: load(HERE / file) for name, file in PIPELINES.items()}

    def peer(self, peer: Contender, python: Path) -> Figure:
        """One run of a peer over the topic of the first round."""
        environment = {
            **os.environ,
            "BENCH_BROKER": self._stack.kafka,
            "BENCH_TOPIC": topics.EVENTS.of(self._named(OURS, 0).name),
            "BENCH_EVENTS": str(min(peer.events, self._count)),
        }
        with pinned([str(python), *peer.command], environment, cwd=PEERS) as process:
            output, _ = process.communicate(timeout=PATIENCE_SECONDS)
        return Figure(**json.loads(output.splitlines()[-1]))

    def ours(self, name: str, number: int) -> Figure:
        """One run of our worker over a topic of its own, from its first row to its last."""
        pipeline = self._named(name, number)
        asyncio.run(publish_events(self._stack.kafka, pipeline, self._payments))
        snapshot = self._folder / f"{pipeline.name}.json"
        snapshot.write_bytes(Snapshot(pipeline, 1).encode())
        environment = {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": self._stack.kafka,
            "REDIS_URL": self._stack.redis_url,
        }
        command = [sys.executable, "-m", "homeostat.features.worker"]
        command += ["--pipeline", pipeline.name, "--snapshot", str(snapshot)]
        with pinned(command, environment, cwd=HERE) as process:
            figure = asyncio.run(self._watched(process.pid, FeatureView(pipeline)))
            process.terminate()
            process.wait(PATIENCE_SECONDS)
        return figure

    async def _watched(self, pid: int, view: FeatureView) -> Figure:
        """From the first time that rows are seen in Redis until the last ones are."""
        redis, worker = Redis.from_url(self._stack.redis_url), psutil.Process(pid)
        name = view.pipeline.name
        inputs = [topics.EVENTS.of(name)]
        inputs += [*view.logs.values()]
        last = inputs[-1]
        first: tuple[int, float, float] | None = None
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while True:
                    progress: Any = await read_progress(redis, view, partitions=1)
                    positions = [progress["positions"][topic]["0"] for topic in inputs]
                    now = (positions[-1], time.perf_counter(), sum(worker.cpu_times()[:2]))
                    first = first or (now if positions[-1] else None)
                    if first is not None and await self._is_done(inputs, positions):
                        break
                    await asyncio.sleep(POLL_SECONDS)
        finally:
            await redis.aclose()
        events = self._count - await self._events_before(view, last, first[0])
        return Figure(events, now[1] - first[1], now[2] - first[2])

    async def _is_done(self, inputs: Sequence[str], positions: Sequence[int]) -> bool:
        """Whether every event has been taken in, and each entity's log folded to its end."""
        if positions[0] < self._count:
            return False
        places = [TopicPartition(topic, 0) for topic in inputs]
        async with self._reader(inputs[-1]) as reader:
            ends = await reader.end_offsets(places)
        return all(
            position >= ends[place] for place, position in zip(places, positions, strict=True)
        )

    async def _events_before(self, view: FeatureView, log: str, offset: int) -> int:
        """How many events the records of a log below an offset hold."""
        codec, events = HopCodec(view), 0
        async with self._reader(log) as reader:
            for _ in range(offset):
                record = await reader.getone()
                events += len(codec.decode(record.value, record.offset).hops)
        return events

    @asynccontextmanager
    async def _reader(self, log: str) -> AsyncIterator[AIOKafkaConsumer]:
        reader = kafka.consumer(bootstrap_servers=self._stack.kafka, client_id="bench")
        await reader.start()
        try:
            reader.assign([TopicPartition(log, 0)])
            yield reader
        finally:
            await reader.stop()

    def _named(self, name: str, number: int) -> Pipeline:
        pipeline = self._pipelines[name]
        return pipeline.model_copy(update={"name": f"{pipeline.name}-{number}"})


def report(figures: dict[str, list[Figure]]) -> None:
    print(f"{'':34}{'events/s':>12}{'per CPU-s':>12}{'ours / it':>12}   events timed")
    ours = figures[OURS]
    for name, runs in figures.items():
        rate = median(run.rate for run in runs)
        per_cpu = median(run.events / run.cpu_seconds for run in runs)
        ratio = median(our.rate / run.rate for our, run in zip(ours, runs, strict=True))
        print(f"{name:34}{rate:12,.0f}{per_cpu:12,.0f}{ratio:12.1f}   {runs[0].events:,}")


if __name__ == "__main__":
    main()
