"""Durable publishing: a row counts as accepted when the broker has acknowledged it, not before."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from homeostat.common import kafka, topics
from homeostat.common.errors import Overloaded, TransientError
from homeostat.ingest import metrics
from homeostat.ingest.intake import Row

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 2
RECONNECT_SECONDS = 0.5


@dataclass(frozen=True)
class Position:
    """Where the broker keeps a row."""

    topic: str
    partition: int
    offset: int


class Publisher:
    """Sends rows with bounded memory and a deadline.

    An error after the deadline is ambiguous: the row may have been stored. Senders retry with the
    same id, which the fold counts once.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        client_id: str,
        max_in_flight_bytes: int,
        deadline_seconds: float,
    ) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._producer: AIOKafkaProducer = kafka.producer(bootstrap_servers, client_id=client_id)
        self._connecting: asyncio.Task[None] | None = None
        self._max_in_flight_bytes = max_in_flight_bytes
        self._deadline_seconds = deadline_seconds
        self._in_flight_bytes = 0

    async def start(self) -> None:
        """Connect in the background; until there is a broker, publishing is refused."""
        self._connecting = asyncio.create_task(self._connect(), name="connect to Kafka")

    async def stop(self) -> None:
        """Flush what is on its way and leave."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        await self._producer.stop()

    @property
    def is_connected(self) -> bool:
        return self._connecting is not None and self._connecting.done()

    async def publish(
        self, topic: str, rows: Sequence[Row], *, traceparent: str | None
    ) -> list[Position]:
        """Publish rows in their order per key, and wait for the broker's acknowledgement.

        Raises:
            Overloaded: our buffer is full.
            TransientError: the broker did not acknowledge in time.
        """
        if not self.is_connected:
            raise TransientError(
                "the broker does not answer", retry_after_seconds=RETRY_AFTER_SECONDS
            )
        size = sum(len(row.value) for row in rows)
        if self._in_flight_bytes and self._in_flight_bytes + size > self._max_in_flight_bytes:
            raise Overloaded(
                "too many rows wait for the broker", retry_after_seconds=RETRY_AFTER_SECONDS
            )
        self._track(size)
        started = time.monotonic()
        work = asyncio.ensure_future(self._send(topic, rows, traceparent))
        work.add_done_callback(lambda _: self._track(-size))
        try:
            # Shielded: a request that gives up must not tear a batch that is on its way.
            return await asyncio.wait_for(asyncio.shield(work), self._deadline_seconds)
        except (TimeoutError, KafkaError) as error:
            work.add_done_callback(_retrieve)
            raise TransientError(
                "the broker did not acknowledge in time; the rows may have been stored",
                fix="send them again with the same ids",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            ) from error
        finally:
            metrics.PUBLISH_SECONDS.observe(time.monotonic() - started)

    async def _connect(self) -> None:
        declared = [(topic.of(), topic) for topic in topics.GLOBAL]
        while True:
            try:
                await kafka.ensure_topics(self._bootstrap_servers, declared)
                await self._producer.start()
            except (KafkaError, OSError) as error:
                logger.warning("waiting for Kafka", extra={"error": repr(error)})
                await asyncio.sleep(RECONNECT_SECONDS)
            else:
                return

    async def _send(
        self, topic: str, rows: Sequence[Row], traceparent: str | None
    ) -> list[Position]:
        partitions = await self._producer.partitions_for(topic)
        if len(rows) == 1:
            row = rows[0]
            partition = kafka.partition_of(row.key, len(partitions))
            sent = await self._producer.send(
                topic, row.value, row.key, partition, headers=_headers(row, traceparent)
            )
            return [Position(topic, partition, (await sent).offset)]
        return await self._send_batches(topic, rows, len(partitions), traceparent)

    async def _send_batches(
        self, topic: str, rows: Sequence[Row], partitions: int, traceparent: str | None
    ) -> list[Position]:
        by_partition: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            by_partition.setdefault(kafka.partition_of(row.key, partitions), []).append(index)
        positions: list[Position | None] = [None] * len(rows)
        sent: list[tuple[int, list[int], Awaitable[Any]]] = []
        for partition, indexes in by_partition.items():
            batch = self._producer.create_batch()
            inside: list[int] = []
            for index in indexes:
                row = rows[index]
                headers = _headers(row, traceparent)
                fields = {"key": row.key, "value": row.value, "timestamp": None, "headers": headers}
                if batch.append(**fields) is None:
                    sent.append((partition, inside, await self._flush(batch, topic, partition)))
                    batch, inside = self._producer.create_batch(), []
                    batch.append(**fields)
                inside.append(index)
            sent.append((partition, inside, await self._flush(batch, topic, partition)))
        for partition, indexes, acknowledged in sent:
            base = (await acknowledged).offset
            for place, index in enumerate(indexes):
                positions[index] = Position(topic, partition, base + place)
        return [position for position in positions if position is not None]

    async def _flush(self, batch: Any, topic: str, partition: int) -> Awaitable[Any]:
        acknowledged: Awaitable[Any] = await self._producer.send_batch(
            batch, topic, partition=partition
        )
        return acknowledged

    def _track(self, size: int) -> None:
        self._in_flight_bytes += size
        metrics.IN_FLIGHT.set(self._in_flight_bytes)


def _retrieve(work: asyncio.Future[Any]) -> None:
    """Look at the outcome of abandoned work, so that it is not reported as forgotten."""
    if not work.cancelled():
        work.exception()


def _headers(row: Row, traceparent: str | None) -> list[tuple[str, bytes]]:
    headers = []
    if traceparent is not None:
        headers.append((kafka.TRACEPARENT, traceparent.encode()))
    if row.available_at is not None:
        headers.append((kafka.AVAILABLE_AT, str(row.available_at).encode()))
    return headers
