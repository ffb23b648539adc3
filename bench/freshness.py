"""From an event's time until a read finds it: our features service at a steady rate.

``make bench-freshness`` publishes payments as they happen, 5,000 a second, to a running service
(worker, offline store and audit on one core), and prints what its own histogram tells: the share of
events that were readable within each bound, and the mean size of an entity's row. There is no peer
beside it: none of them tells.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from bench.cores import pin_contender, pin_servers
from homeostat.cli.publishing import publish
from homeostat.cli.testing import SessionStack, running_service, running_stores
from homeostat.common import kafka, topics
from homeostat.common.feature_store.online import row_key
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import Pipeline, load

HERE = Path(__file__).parent
ENTITY = "customer"
CUSTOMERS = 42_000
TICK_SECONDS = 0.02
WARM_UP_SECONDS = 5
PATIENCE_SECONDS = 120
METRIC = "features_freshness_seconds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=5_000, help="events a second")
    parser.add_argument("--seconds", type=int, default=60)
    arguments = parser.parse_args()
    os.environ["KAFKA_PARTITIONS"] = "1"
    pipeline = load(HERE / "features.yaml")
    with (
        tempfile.TemporaryDirectory() as folder,
        running_stores(Path(folder) / "stack") as stack,
    ):
        pin_servers()
        asyncio.run(kafka.ensure_topics(stack.kafka, topics.of_pipeline(pipeline)))
        asyncio.run(publish(pipeline, bootstrap_servers=stack.kafka))
        with running_service(
            "homeostat.features",
            stack,
            Path(folder) / "features",
            port_variable="FEATURES_PORT",
            env={"FEATURES_GRPC_PORT": "0"},
        ) as service:
            asyncio.run(paid(stack, pipeline, rate=arguments.rate, seconds=1))
            asyncio.run(readable(service.url, at_least=arguments.rate))
            pin_contender(service.process.pid)
            asyncio.run(paid(stack, pipeline, rate=arguments.rate, seconds=WARM_UP_SECONDS))
            seen = arguments.rate * (1 + WARM_UP_SECONDS)
            before = asyncio.run(readable(service.url, at_least=seen))
            asyncio.run(paid(stack, pipeline, rate=arguments.rate, seconds=arguments.seconds))
            seen += arguments.rate * arguments.seconds
            after = asyncio.run(readable(service.url, at_least=seen))
            size = asyncio.run(row_bytes(stack, pipeline))
    report({bound: after[bound] - before[bound] for bound in after}, size)


async def paid(stack: SessionStack, pipeline: Pipeline, *, rate: int, seconds: int) -> None:
    """Publish payments of now, in batches of a tick."""
    chance = np.random.default_rng(time.time_ns())
    producer = kafka.producer(stack.kafka, client_id="bench")
    await producer.start()
    topic = topics.EVENTS.of(pipeline.name)
    each = round(rate * TICK_SECONDS)
    started = time.monotonic()
    try:
        for tick in range(round(seconds / TICK_SECONDS)):
            await asyncio.sleep(max(0.0, started + tick * TICK_SECONDS - time.monotonic()))
            now = time.time_ns() // 1_000_000
            payers = (chance.zipf(1.3, each) % CUSTOMERS).tolist()
            batch = producer.create_batch()
            for number, payer in enumerate(payers):
                value = b'{"id":"p%d-%d","time":%d,"customer":"c%d","shop":"s1","amount":%d}' % (
                    *(time.time_ns(), number),
                    *(now, payer, number),
                )
                batch.append(key=b"c%d" % payer, value=value, timestamp=None)
            await producer.send_batch(batch, topic, partition=0)
    finally:
        await producer.stop()


async def readable(url: str, *, at_least: int) -> dict[float, float]:
    """Events by bound in seconds, once so many are readable."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    async with httpx.AsyncClient() as http:
        while True:
            text = (await http.get(f"{url}/metrics")).text
            found = {
                float(sample.labels["le"]): sample.value
                for family in text_string_to_metric_families(text)
                if family.name == METRIC
                for sample in family.samples
                if sample.name.endswith("_bucket")
            }
            if found.get(float("inf"), 0) >= at_least:
                return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"{found} of {at_least}")
            await asyncio.sleep(0.2)


async def row_bytes(stack: SessionStack, pipeline: Pipeline) -> float:
    """The mean size of an entity's row in the online store."""
    view = FeatureView(pipeline)
    prefix = row_key(pipeline.name, view.definition_hash, ENTITY, "")
    async with Redis.from_url(stack.redis_url) as redis:
        keys = [key async for key in redis.scan_iter(match=prefix + b"*", count=10_000)]
        rows: list[bytes] = await redis.mget(keys)  # type: ignore[assignment]  # not decoded
    return sum(map(len, rows)) / len(rows)


def report(counts: dict[float, float], size: float) -> None:
    total = counts[float("inf")]
    print(f"{total:,.0f} events; an entity's row has {size:.0f} bytes")
    for bound, count in sorted(counts.items()):
        print(f"readable within {bound:7.3f} s {count / total:9.3%}")


if __name__ == "__main__":
    main()
