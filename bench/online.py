"""Fifty features of a customer read online: our server beside Feast's, one core each, in one run.

``make bench-online`` installs Feast into an environment of its own and runs this. Both read from
the same Redis, on the other core with the client, over one connection, a request at a time.

The work is not equal, and the difference is in Feast's favour: ours evaluates windows at the time
of the read and tells each value's status; Feast hands out fifty numbers that were written before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from subprocess import Popen
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
from aiokafka import TopicPartition
from redis.asyncio import Redis

from bench.cores import pin_contender, pin_servers, pinned
from bench.payments import Payment, payments, publish_events
from homeostat.cli.publishing import publish
from homeostat.cli.stack import ports
from homeostat.cli.testing import SessionStack, running_service, running_stores
from homeostat.common import kafka, topics
from homeostat.common.feature_store.reading import STATUS_NAMES
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import Pipeline, load
from homeostat.common.proto import features_pb2 as pb
from homeostat.common.proto import features_pb2_grpc as pb_grpc
from homeostat.common.windows import Status
from homeostat.features.progress import read_progress

HERE = Path(__file__).parent
ENTITY = "customer"
CUSTOMERS, EVENTS = 1_000, 50_000
AGGREGATES = {
    "count": "count()",
    **{name: f"{name}(amount)" for name in ("sum", "mean", "min", "max")},
}
HOURS = (1, 2, 3, 4, 6, 8, 10, 12, 18, 24)
REQUESTS = {1: 500, 100: 100}  # by rows of a request: how many of them a round
WARM_UP = 30
PATIENCE_SECONDS = 120
KNOWN = (Status.PRESENT, Status.NULL)  # the mean of no payments is null
KNOWN_NAMES = [STATUS_NAMES[code] for code in KNOWN]
OURS_HTTP, OURS_GRPC, FEAST = "Homeostat, HTTP", "Homeostat, gRPC", "Feast, HTTP"

Read = Callable[[list[str]], int]  # customers in, how many values came back


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers-python", type=Path, help="without it, ours alone is measured")
    arguments = parser.parse_args()
    os.environ["KAFKA_PARTITIONS"] = "1"
    pipeline = fifty_features()
    paid = payments(EVENTS, customers=CUSTOMERS)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_stores(Path(folder) / "stack") as stack,
        ExitStack() as servers,
    ):
        pin_servers()
        reads = servers.enter_context(ours(stack, pipeline, paid, Path(folder) / "ours"))
        if python := arguments.peers_python:
            home = Path(folder) / "feast"
            reads[FEAST] = servers.enter_context(feast(stack, pipeline, home, python))
        customers = sorted({payment.key.decode() for payment in paid})
        report(measured(reads, customers, arguments.rounds))


def fifty_features() -> Pipeline:
    """The bench's pipeline with five aggregates over ten windows."""
    document = load(HERE / "features.yaml").model_dump(mode="json", by_alias=True)
    document["features"] = {
        f"{name}_{hours}h": {
            "entity": ENTITY,
            "aggregate": aggregate,
            "window": f"sliding {hours}h",
        }
        for name, aggregate in AGGREGATES.items()
        for hours in HOURS
    }
    return Pipeline.model_validate(document)


@contextmanager
def ours(
    stack: SessionStack, pipeline: Pipeline, paid: Sequence[Payment], folder: Path
) -> Iterator[dict[str, Read]]:
    """A features server that has folded the payments, read over both of its wires."""
    grpc_port = ports.choose({"grpc": 0}, ports.PortPolicy.FREE)["grpc"]
    environment = {"FEATURES_GRPC_PORT": str(grpc_port)}
    asyncio.run(publish_events(stack.kafka, pipeline, paid))
    asyncio.run(publish(pipeline, bootstrap_servers=stack.kafka))
    with (
        running_service(
            "homeostat.features", stack, folder, port_variable="FEATURES_PORT", env=environment
        ) as service,
        grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel,
    ):
        asyncio.run(folded(stack, FeatureView(pipeline)))
        pin_contender(service.process.pid)
        stub = pb_grpc.FeaturesStub(channel)  # type: ignore[no-untyped-call]  # generated
        connection = HTTPConnection("127.0.0.1", int(service.url.rpartition(":")[2]))
        path = f"/v1/pipelines/{pipeline.name}/features/read"

        def over_http(customers: list[str]) -> int:
            document = posted(connection, path, {"entities": [{ENTITY: key} for key in customers]})
            return sum(
                value["status"] in KNOWN_NAMES
                for row in document["rows"]
                for value in row["features"].values()
            )

        def over_grpc(customers: list[str]) -> int:
            rows = [pb.EntityKeys(keys={ENTITY: key}) for key in customers]
            answer = stub.Read(pb.ReadRequest(pipeline=pipeline.name, entities=rows))
            return sum(row.statuses.count(code) for row in answer.rows for code in KNOWN)

        yield {OURS_HTTP: over_http, OURS_GRPC: over_grpc}


async def folded(stack: SessionStack, view: FeatureView) -> None:
    """Until every payment is in the online store, hop after hop."""
    name = view.pipeline.name
    consumer = kafka.consumer(bootstrap_servers=stack.kafka, client_id="bench")
    await consumer.start()
    try:
        async with Redis.from_url(stack.redis_url) as redis, asyncio.timeout(PATIENCE_SECONDS):
            for topic in (topics.EVENTS.of(name), view.logs[ENTITY]):
                place = TopicPartition(topic, 0)
                end = (await consumer.end_offsets([place]))[place]
                while True:
                    progress: Any = await read_progress(redis, view, partitions=1)
                    if progress["positions"][topic]["0"] >= end:
                        break
                    await asyncio.sleep(0.1)
    finally:
        await consumer.stop()


@contextmanager
def feast(stack: SessionStack, pipeline: Pipeline, folder: Path, python: Path) -> Iterator[Read]:
    """Feast's server with as many features of the same customers, on a database beside ours."""
    port = ports.choose({"feast": 0}, ports.PortPolicy.FREE)["feast"]
    folder.mkdir()
    names = [*pipeline.features]
    redis = urlsplit(stack.redis_url)
    environment = {
        **os.environ,
        "BENCH_FOLDER": str(folder),
        "BENCH_REDIS": f"{redis.hostname}:{redis.port},password={redis.password}",
        "BENCH_FEATURES": ",".join(names),
        "BENCH_CUSTOMERS": str(CUSTOMERS),
        "BENCH_PORT": str(port),
    }
    command = [str(python), "online_feast.py"]
    with pinned(command, environment, cwd=HERE / "peers") as process:
        connection = HTTPConnection("127.0.0.1", port)
        wait_until_open(process, connection)
        pin_contender(process.pid)
        asked = [f"payments:{name}" for name in names]

        def read(customers: list[str]) -> int:
            request = {"features": asked, "entities": {ENTITY: customers}}
            document = posted(connection, "/get-online-features", request)
            features = document["results"][1:]  # the first are the keys
            return sum(column["statuses"].count("PRESENT") for column in features)

        yield read


def wait_until_open(process: Popen[str], connection: HTTPConnection) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        if process.poll() is not None:
            raise RuntimeError("Feast's server has ended")
        try:
            connection.connect()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def posted(connection: HTTPConnection, path: str, document: object) -> Any:
    body = json.dumps(document)
    connection.request("POST", path, body, {"content-type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    if response.status != 200:
        raise RuntimeError(text.decode())
    return json.loads(text)


Latencies = dict[tuple[str, int], list[list[float]]]  # by who and rows: milliseconds of each round


def measured(reads: dict[str, Read], customers: list[str], rounds: int) -> Latencies:
    """Everybody in turn, round by round; each answer must hold every value."""
    latencies: Latencies = {}
    for number in range(rounds):
        for rows, requests in REQUESTS.items():
            asked = np.random.default_rng(number).choice(customers, (requests, rows)).tolist()
            for name, read in reads.items():
                for keys in asked[:WARM_UP]:
                    read(keys)
                latencies.setdefault((name, rows), []).append([timed(read, keys) for keys in asked])
    return latencies


def timed(read: Read, customers: list[str]) -> float:
    start = time.perf_counter()
    present = read(customers)
    spent = time.perf_counter() - start
    if present != len(customers) * len(AGGREGATES) * len(HOURS):
        raise RuntimeError(f"{present} values of {len(customers)} customers")
    return spent * 1000


def report(latencies: Latencies) -> None:
    print(f"{'ms, client included':18}{'rows':>6}{'p50':>9}{'p99':>9}{'Feast / it':>22}")
    for (name, rows), rounds in latencies.items():
        p50, p99 = percentiles(rounds)
        line = f"{name:18}{rows:6}{median(p50):9.2f}{median(p99):9.2f}"
        if theirs := latencies.get((FEAST, rows)):
            slow50, slow99 = percentiles(theirs)
            line += f"{ratio(slow50, p50):12.1f} p50{ratio(slow99, p99):6.1f} p99"
        print(line)


def percentiles(rounds: list[list[float]]) -> tuple[list[float], list[float]]:
    """The median and the 99th percentile of each round."""
    p50, p99 = np.percentile(np.array(rounds), [50, 99], axis=1)
    return p50.tolist(), p99.tolist()


def ratio(theirs: list[float], own: list[float]) -> float:
    return median(slow / fast for slow, fast in zip(theirs, own, strict=True))


if __name__ == "__main__":
    main()
