"""From Kafka to window features: our worker beside its peers, one core each, in one run.

``make bench-features`` installs the peers into an environment of their own and runs this. The
servers have one core, the contender the other. Every contender reads the same topic: a day of
payments of one partition, in order, five windows of one entity.

The work is not equal, and the difference is in the peers' favour: ours writes every row to Redis
and to a changelog in transactions, and each event's vector to Kafka; peers write nothing anywhere
but in their own state, and are timed on their first events, while that is small.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import psutil
from redis.asyncio import Redis

from homeostat.cli.testing import SessionStack, running_stores
from homeostat.common import kafka, topics
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import Pipeline, Snapshot, load
from homeostat.features.progress import read_progress

HERE = Path(__file__).parent
PEERS = HERE / "peers"
SERVERS, CONTENDER = [0], [1]  # cores
CUSTOMERS = 42_000
DAY_MS = 86_400_000
POLL_SECONDS = 0.05
PATIENCE_SECONDS = 600
OURS, ENTITY = "Homeostat", "customer"


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


class Payment(NamedTuple):
    key: bytes
    value: bytes
    time: int  # epoch ms


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
            figures.setdefault(OURS, []).append(bench.ours(number))
            for peer in PEER_CONTENDERS if arguments.peers_python else ():
                figures.setdefault(peer.name, []).append(bench.peer(peer, arguments.peers_python))
    report(figures)


class Bench:
    """One topic of events, and those who read it."""

    def __init__(self, stack: SessionStack, folder: Path, events: int) -> None:
        self._stack = stack
        self._folder = folder
        self._count = events
        self._payments = payments(events)
        self._pipeline = load(HERE / "features.yaml")

    async def fill(self, pipeline: Pipeline, payments: Sequence[Payment]) -> None:
        """Append payments to the pipeline's topic, each at its own time."""
        await kafka.ensure_topics(self._stack.kafka, topics.of_pipeline(pipeline))
        producer = kafka.producer(self._stack.kafka, client_id="bench")
        await producer.start()
        topic = topics.EVENTS.of(pipeline.name)
        try:
            batch = producer.create_batch()
            for key, value, moment in payments:
                if batch.append(key=key, value=value, timestamp=moment) is None:
                    await producer.send_batch(batch, topic, partition=0)
                    batch = producer.create_batch()
                    batch.append(key=key, value=value, timestamp=moment)
            await (await producer.send_batch(batch, topic, partition=0))
        finally:
            await producer.stop()

    def peer(self, peer: Contender, python: Path) -> Figure:
        """One run of a peer over the topic of the first round."""
        environment = {
            **os.environ,
            "BENCH_BROKER": self._stack.kafka,
            "BENCH_TOPIC": topics.EVENTS.of(self._named(0).name),
            "BENCH_EVENTS": str(min(peer.events, self._count)),
        }
        with pinned([str(python), *peer.command], environment, cwd=PEERS) as process:
            output, _ = process.communicate(timeout=PATIENCE_SECONDS)
        return Figure(**json.loads(output.splitlines()[-1]))

    def ours(self, number: int) -> Figure:
        """One run of our worker over a topic of its own, from its first row to its last."""
        pipeline = self._named(number)
        asyncio.run(self.fill(pipeline, self._payments[: self._count]))
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
        first: tuple[int, float, float] | None = None
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while True:
                    progress: Any = await read_progress(redis, view, partitions=1)
                    done = progress["positions"][topics.BY_ENTITY.of(view.pipeline.name, ENTITY)]
                    now = (done["0"], time.perf_counter(), sum(worker.cpu_times()[:2]))
                    if first is None and now[0]:
                        first = now
                    if first is not None and now[0] >= self._count:
                        return Figure(*(b - a for a, b in zip(first, now, strict=True)))
                    await asyncio.sleep(POLL_SECONDS)
        finally:
            await redis.aclose()

    def _named(self, number: int) -> Pipeline:
        return self._pipeline.model_copy(update={"name": f"bench-{number}"})


def payments(count: int) -> list[Payment]:
    """A day of them, up to now, in order of time; a few customers pay often, most seldom."""
    start = round(time.time() * 1000) - DAY_MS
    chance = np.random.default_rng(4)
    times = np.sort(chance.integers(start, start + DAY_MS, count)).tolist()
    customers = chance.zipf(1.3, count) % CUSTOMERS
    cents = chance.integers(100, 50_000, count)
    return [
        Payment(
            b"c%d" % customer,
            b'{"id":"p%d","time":%d,"customer":"c%d","amount":%.2f}'
            % (number, moment, customer, cent / 100),
            moment,
        )
        for number, (moment, customer, cent) in enumerate(
            zip(times, customers.tolist(), cents.tolist(), strict=True)
        )
    ]


@contextmanager
def pinned(
    command: list[str], environment: dict[str, str], *, cwd: Path
) -> Iterator[subprocess.Popen[str]]:
    """A process on the contender's core, ended when the context is left."""
    process = subprocess.Popen(command, env=environment, cwd=cwd, stdout=subprocess.PIPE, text=True)
    psutil.Process(process.pid).cpu_affinity(CONTENDER)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def pin_servers() -> None:
    """Keep the servers, and this process, off the contender's core."""
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        process.cpu_affinity(SERVERS)


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
