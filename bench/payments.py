"""Payments for a bench: made up, and put on a pipeline's topic of one partition."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from homeostat.common import kafka, topics
from homeostat.common.pipeline import Pipeline

DAY_MS = 86_400_000
SHOPS = 2_000


class Payment(NamedTuple):
    key: bytes
    value: bytes
    time: int  # epoch ms


def payments(count: int, *, customers: int) -> list[Payment]:
    """A day of them, up to now, in order of time; a few customers pay often, most seldom."""
    start = round(time.time() * 1000) - DAY_MS
    chance = np.random.default_rng(4)
    times = np.sort(chance.integers(start, start + DAY_MS, count)).tolist()
    payers = chance.zipf(1.3, count) % customers
    shops = chance.integers(0, SHOPS, count)
    cents = chance.integers(100, 50_000, count)
    return [
        Payment(
            b"c%d" % customer,
            b'{"id":"p%d","time":%d,"customer":"c%d","shop":"s%d","amount":%.2f}'
            % (number, moment, customer, shop, cent / 100),
            moment,
        )
        for number, (moment, customer, shop, cent) in enumerate(
            zip(times, payers.tolist(), shops.tolist(), cents.tolist(), strict=True)
        )
    ]


async def publish_events(
    bootstrap_servers: str, pipeline: Pipeline, payments: Sequence[Payment]
) -> None:
    """Append payments to the pipeline's topic, each at its own time."""
    await kafka.ensure_topics(bootstrap_servers, topics.of_pipeline(pipeline))
    producer = kafka.producer(bootstrap_servers, client_id="bench")
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
