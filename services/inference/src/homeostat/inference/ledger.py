"""The ledger of the request path: every score becomes a row on the topic, and no request waits for
it.

Rows gather in a bounded queue and go out in batches of our own making, since a producer's
``send`` costs more than a score. What does not fit, or is refused by the broker for good, is lost
and counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.producer.message_accumulator import BatchBuilder

from homeostat.common import kafka, topics
from homeostat.common.schemas.ledger import Prediction, encode_row
from homeostat.inference import metrics

logger = logging.getLogger(__name__)

LINGER_SECONDS = 0.02
MAX_ROWS_PER_WRITE = 2_000
RETRY_SECONDS = 1.0


class Entry(NamedTuple):
    """A row to write; ``available_at`` (epoch ms) only under replay, whose clock others follow."""

    row: Prediction
    available_at: int | None = None


class Ledger:
    """Owns its producer: starts one when Kafka is there, and drains into it when stopped."""

    def __init__(
        self, connect: Callable[[], AIOKafkaProducer], *, capacity: int, flush: timedelta
    ) -> None:
        self._connect = connect
        self._capacity = capacity
        self._flush_seconds = flush.total_seconds()
        self._queue: deque[tuple[str, Entry]] = deque()
        self._filled = asyncio.Event()
        self._is_stopping = False
        self._producer: AIOKafkaProducer | None = None
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._queue)

    def write(self, pipeline: str, entries: Sequence[Entry]) -> None:
        """Take rows over; those that find no room are lost and counted."""
        room = self._capacity - len(self._queue)
        if len(entries) > room:
            metrics.ledger_lost("full", len(entries) - max(room, 0))
            entries = entries[: max(room, 0)]
        self._queue.extend((pipeline, entry) for entry in entries)
        self._filled.set()

    async def start(self) -> None:
        self._task = asyncio.create_task(self._work(), name="ledger")

    async def stop(self) -> None:
        """Write what waits, as far as the time for it allows."""
        self._is_stopping = True
        self._filled.set()
        if self._task is not None:
            try:
                async with asyncio.timeout(self._flush_seconds):
                    await self._task
            except TimeoutError:
                metrics.ledger_lost("stopped", len(self._queue))
                logger.error("ledger rows lost at shutdown", extra={"rows": len(self._queue)})
        if self._producer is not None:
            await self._producer.stop()

    async def _work(self) -> None:
        producer = self._producer = await self._connected()
        while True:
            await self._filled.wait()
            self._filled.clear()
            if not self._is_stopping:
                await asyncio.sleep(LINGER_SECONDS)  # company, so that a batch is worth its request
            while self._queue:
                await self._write_some(producer)
            if self._is_stopping:
                return

    async def _connected(self) -> AIOKafkaProducer:
        while True:
            producer = self._connect()
            try:
                await producer.start()
            except (KafkaError, OSError) as error:
                await producer.stop()
                logger.warning("ledger cannot reach Kafka", extra={"error": repr(error)})
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return producer

    async def _write_some(self, producer: AIOKafkaProducer) -> None:
        metrics.ledger_queue(len(self._queue))
        count = min(len(self._queue), MAX_ROWS_PER_WRITE)
        rows: dict[str, list[Entry]] = defaultdict(list)
        for _ in range(count):
            pipeline, entry = self._queue.popleft()
            rows[pipeline].append(entry)
        written = await asyncio.gather(*(_send(producer, *item) for item in rows.items()))
        metrics.ledger_rows(sum(written))
        if (lost := count - sum(written)) > 0:
            metrics.ledger_lost("failed", lost)


async def _send(producer: AIOKafkaProducer, pipeline: str, entries: list[Entry]) -> int:
    """Send the rows of one pipeline; returns how many the broker has."""
    topic = topics.PREDICTIONS.of(pipeline)
    try:
        partitions = len(await producer.partitions_for(topic))
    except (KafkaError, OSError) as error:
        logger.error("ledger rows lost", extra={"topic": topic, "error": repr(error)})
        return 0
    by_partition: dict[int, deque[Entry]] = defaultdict(deque)
    for entry in entries:
        by_partition[kafka.partition_of(entry.row.unit.encode(), partitions)].append(entry)
    sent = await asyncio.gather(
        *(_send_to(producer, topic, number, some) for number, some in by_partition.items())
    )
    return sum(sent)


async def _send_to(
    producer: AIOKafkaProducer, topic: str, partition: int, waiting: deque[Entry]
) -> int:
    acknowledged = 0
    while waiting:
        batch, taken = _filled(producer, waiting)
        try:
            await (await producer.send_batch(batch, topic, partition=partition))
        except (KafkaError, OSError) as error:
            logger.error("ledger rows lost", extra={"topic": topic, "error": repr(error)})
        else:
            acknowledged += taken
    return acknowledged


def _filled(producer: AIOKafkaProducer, waiting: deque[Entry]) -> tuple[BatchBuilder, int]:
    """A batch with as many of the waiting rows as fit: at least one."""
    batch = producer.create_batch()
    taken = 0
    now = int(time.time() * 1000)
    while waiting:
        row = waiting[0].row
        fits = batch.append(
            key=row.unit.encode(),
            value=encode_row(row),
            timestamp=now,
            headers=_headers(waiting[0]),
        )
        if not fits:
            break
        waiting.popleft()
        taken += 1
    batch.close()
    return batch, taken


def _headers(entry: Entry) -> list[tuple[str, bytes]]:
    headers = []
    if entry.row.traceparent is not None:
        headers.append((kafka.TRACEPARENT, entry.row.traceparent.encode()))
    if entry.available_at is not None:
        headers.append((kafka.AVAILABLE_AT, str(entry.available_at).encode()))
    return headers
