"""What the data plane writes: exposures and trips. No request ever waits for either.

Exposures wait in a bounded queue; those beyond it are counted as lost. Trips are few and are sent
until the broker has them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from homeostat.common import kafka, topics
from homeostat.common.schemas.exposures import Exposure
from homeostat.common.schemas.rollouts import Trip
from homeostat.router import metrics
from homeostat.router.trips import Trips

logger = logging.getLogger(__name__)

RECONNECT_SECONDS = 0.5
FLUSH_SECONDS = 5.0
SEND_ROWS = 500
_encode = msgspec.json.Encoder().encode
_decode_trip = msgspec.json.Decoder(Trip).decode


class Publisher:
    """Writes in the background as long as it is entered as a context."""

    def __init__(self, bootstrap_servers: str, *, client_id: str, max_waiting: int) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._client_id = client_id
        self._max_waiting = max_waiting
        self._exposures: deque[tuple[str, Exposure, bool]] = deque()
        self._trips: deque[Trip] = deque()
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="publish exposures and trips")

    async def stop(self) -> None:
        """Write what waits, for a few seconds; the rest is lost and counted."""
        self._is_stopping = True
        self._work.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=FLUSH_SECONDS)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        metrics.EXPOSURES_LOST.inc(len(self._exposures))

    def expose(self, pipeline: str, exposure: Exposure, *, is_replayed: bool) -> None:
        if len(self._exposures) >= self._max_waiting:
            metrics.EXPOSURES_LOST.inc()
            return
        self._exposures.append((topics.EXPOSURES.of(pipeline), exposure, is_replayed))
        self._work.set()

    def report(self, trip: Trip) -> None:
        self._trips.append(trip)
        self._work.set()

    async def _run(self) -> None:
        while not self._is_stopping or self._exposures or self._trips:
            producer = kafka.producer(
                self._bootstrap_servers, client_id=self._client_id, linger_ms=5
            )
            try:
                await kafka.ensure_topics(
                    self._bootstrap_servers, [(topic.of(), topic) for topic in topics.GLOBAL]
                )
                await producer.start()
                await self._write(producer)
            except (KafkaError, OSError) as error:
                logger.warning("waiting for Kafka", extra={"error": repr(error)})
                await asyncio.sleep(RECONNECT_SECONDS)
            finally:
                await producer.stop()

    async def _write(self, producer: AIOKafkaProducer) -> None:
        while True:
            while self._trips:
                trip = self._trips[0]
                await producer.send_and_wait(
                    topics.ROLLOUT_TRIPS.of(), _encode(trip), trip.pipeline.encode()
                )
                self._trips.popleft()
            if self._exposures:
                await self._write_exposures(producer)
            elif self._is_stopping:
                return
            else:
                self._work.clear()
                await self._work.wait()

    async def _write_exposures(self, producer: AIOKafkaProducer) -> None:
        count = min(SEND_ROWS, len(self._exposures))
        taken = [self._exposures.popleft() for _ in range(count)]
        written = 0
        try:
            sent = [await self._send(producer, *item) for item in taken]
            for acknowledged in sent:
                await acknowledged
                written += 1
        finally:
            metrics.EXPOSURES_SENT.inc(written)
            metrics.EXPOSURES_LOST.inc(count - written)

    async def _send(
        self, producer: AIOKafkaProducer, topic: str, exposure: Exposure, is_replayed: bool
    ) -> asyncio.Future[Any]:
        stamp = [(kafka.AVAILABLE_AT, str(exposure.at).encode())] if is_replayed else []
        future: asyncio.Future[Any] = await producer.send(
            topic, _encode(exposure), exposure.unit.encode(), headers=stamp
        )
        return future


class TripFollower:
    """Reads the trips of all routers from the topic's beginning, for as long as it runs."""

    def __init__(self, bootstrap_servers: str, *, client_id: str, trips: Trips) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._client_id = client_id
        self._trips = trips
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="follow trips")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
            except (KafkaError, OSError) as error:
                logger.warning("waiting for Kafka", extra={"error": repr(error)})
                await asyncio.sleep(RECONNECT_SECONDS)

    async def _follow(self) -> None:
        reader = kafka.consumer(
            bootstrap_servers=self._bootstrap_servers, client_id=self._client_id
        )
        await reader.start()
        try:
            partition = TopicPartition(topics.ROLLOUT_TRIPS.of(), 0)
            reader.assign([partition])
            await reader.seek_to_beginning(partition)
            async for record in reader:
                try:
                    self._trips.add(_decode_trip(record.value))
                except msgspec.DecodeError as error:
                    logger.error("not a trip", extra={"error": str(error)})
        finally:
            await reader.stop()
