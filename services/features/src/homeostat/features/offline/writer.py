"""The writer of one pipeline's tables: reads five topics, commits rows with their offsets.

A consumer group spreads partitions over replicas and is trusted with nothing else: each partition
goes on from the offset in its table. So a crash at any point is repaired by reading again what was
not committed, and a zombie's commit is refused by the table.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from aiokafka import ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import ConsumerStoppedError, KafkaError
from deltalake.exceptions import DeltaError

from homeostat.common import kafka, topics
from homeostat.common.errors import TransientError
from homeostat.common.feature_store.offline import (
    EVENTS,
    LOG,
    OUTCOMES,
    PREDICTIONS,
    VECTORS,
    table_path,
)
from homeostat.common.pipeline import Pipeline
from homeostat.features.offline import metrics, rows
from homeostat.features.offline.buffers import Buffer
from homeostat.features.offline.tables import Displaced, OfflineTable, compact
from homeostat.features.settings import Settings

logger = logging.getLogger(__name__)

CLIENT_ID = "features-offline"
POLL_MILLIS = 50
POLL_RECORDS = 4_000
FEW_RECORDS = 400  # below it the writer rests, so that what it keeps is not all tiny pieces
REST_SECONDS = 0.25
FETCH_BYTES = 1_000_000  # a partition, ahead of what is taken in
KAFKA_SECONDS = 5.0
MAX_BACKOFF_SECONDS = 5.0
RETRY_AFTER_SECONDS = 2.0
STOP_SECONDS = 12.0

Ends = Mapping[TopicPartition, int]


class _Feed(NamedTuple):
    topic: topics.Topic
    shape: rows.Shape
    schema: Callable[[Pipeline], pa.Schema]


_FEEDS: Mapping[str, _Feed] = {
    EVENTS: _Feed(topics.EVENTS, rows.events, rows.empty_events),
    LOG: _Feed(topics.BY_KEY, rows.log, rows.empty_log),
    VECTORS: _Feed(topics.FEATURES, rows.vectors, rows.empty_vectors),
    OUTCOMES: _Feed(topics.OUTCOMES, rows.outcomes, rows.empty_outcomes),
    PREDICTIONS: _Feed(topics.PREDICTIONS, rows.predictions, rows.empty_predictions),
}


@dataclass(frozen=True)
class TableReport:
    version: int
    rows: int
    positions: Mapping[int, int]  # next offset of each partition that this replica owns, committed
    buffered_bytes: int


class Writer:
    """Runs until stopped; comes back from its last commit whenever a dependency fails."""

    def __init__(self, pipeline: Pipeline, settings: Settings) -> None:
        self.pipeline = pipeline
        self._settings = settings
        self._session: _Session | None = None
        self._opened = asyncio.Condition()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._interruption: str | None = None
        self._crash: Exception | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"offline writer {self.pipeline.name}")

    async def stop(self) -> None:
        """Commit what was taken in, and leave the group."""
        self._stopping.set()
        if self._session is not None:
            self._session.wake()
        if self._task is not None:
            _, late = await asyncio.wait([self._task], timeout=STOP_SECONDS)
            for task in late:  # Kafka hangs; what is not committed will be read again
                task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def problem(self) -> str | None:
        """Why nothing is being written, if so."""
        return self._interruption if self._crash is None else str(self._crash)

    async def commit(self) -> Mapping[str, TableReport]:
        """The tables, once they hold everything that is on the topics now.

        Raises:
            TransientError: Kafka or the store is away, or it takes too long.
        """
        try:
            async with asyncio.timeout(KAFKA_SECONDS):
                session = await self._current()
                ends = await session.ends()
        except (TimeoutError, KafkaError, ConsumerStoppedError) as error:
            raise self._unavailable("Kafka does not answer") from error
        try:
            async with asyncio.timeout(self._settings.offline_commit_timeout.total_seconds()):
                while not await session.reach(ends):
                    session = await self._current()
        except TimeoutError as error:
            raise self._unavailable("the tables are still behind the topics") from error
        return session.report()

    async def report(self) -> Mapping[str, TableReport]:
        """The tables as they are."""
        try:
            async with asyncio.timeout(KAFKA_SECONDS):
                return (await self._current()).report()
        except TimeoutError as error:
            raise self._unavailable("the tables are not open yet") from error

    def _unavailable(self, what: str) -> TransientError:
        reason = f": {self.problem}" if self.problem else ""
        return TransientError(f"{what}{reason}", retry_after_seconds=RETRY_AFTER_SECONDS)

    async def _current(self) -> _Session:
        async with self._opened:
            while self._session is None:
                if self._crash is not None:
                    raise self._unavailable("the writer has stopped")
                await self._opened.wait()
            return self._session

    async def _run(self) -> None:
        try:
            await self._keep_writing()
        except Exception as error:
            logger.critical(
                "offline writer stopped", extra={"pipeline": self.pipeline.name}, exc_info=error
            )
            async with self._opened:
                self._crash = error
                self._opened.notify_all()
            raise

    async def _keep_writing(self) -> None:
        backoff = 0.2
        while not self._stopping.is_set():
            try:
                await self._work()
                backoff = 0.2
            except (KafkaError, OSError, DeltaError, TransientError, Displaced) as error:
                self._interruption = repr(error)
                metrics.RESTARTS.labels(self.pipeline.name).inc()
                logger.warning(
                    "offline writer interrupted, it resumes from its last commit",
                    extra={"pipeline": self.pipeline.name, "error": repr(error)},
                )
                await _wait(self._stopping, backoff)
                backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)

    async def _work(self) -> None:
        servers = self._settings.kafka_bootstrap_servers
        await kafka.ensure_topics(servers, topics.of_pipeline(self.pipeline))
        session = await _Session.open(self.pipeline, self._settings)
        try:
            self._interruption = None
            async with self._opened:
                self._session = session
                self._opened.notify_all()
            await session.follow(self._stopping)
        finally:
            self._session = None
            await session.close()


class _Session:
    """One membership in the group, from open tables to a closed consumer."""

    def __init__(
        self,
        pipeline: Pipeline,
        settings: Settings,
        buffers: Sequence[Buffer],
        names: Sequence[str],
    ) -> None:
        self._name = pipeline.name
        self._settings = settings
        self._buffers = {buffer.table.topic: buffer for buffer in buffers}
        self._reader = kafka.consumer(
            bootstrap_servers=settings.kafka_bootstrap_servers,
            client_id=CLIENT_ID,
            group_id=f"{CLIENT_ID}-{pipeline.name}",
            session_timeout_ms=round(settings.session_timeout.total_seconds() * 1000),
            heartbeat_interval_ms=round(settings.session_timeout.total_seconds() * 1000 / 4),
            max_partition_fetch_bytes=FETCH_BYTES,
        )
        self._reader.subscribe(list(names), listener=_Reassignment(self))
        self._must_own = True
        self._writing = asyncio.Lock()  # over rows and positions
        self._woken = asyncio.Event()
        self._settled = asyncio.Condition()
        self._waiting: list[Ends] = []
        self._is_over = False
        self._commits = dict.fromkeys(_FEEDS, 0)
        self._maintenance: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, pipeline: Pipeline, settings: Settings) -> _Session:
        buffers = [await asyncio.to_thread(_buffer, name, pipeline, settings) for name in _FEEDS]
        session = cls(pipeline, settings, buffers, [buffer.table.topic for buffer in buffers])
        try:
            await session._reader.start()
        except BaseException:
            await session._reader.stop()
            raise
        return session

    async def close(self) -> None:
        async with self._settled:
            self._is_over = True
            self._settled.notify_all()
        await self._reader.stop()
        if self._maintenance is not None:
            await self._maintenance

    def wake(self) -> None:
        self._woken.set()

    # What callers ask --------------------------------------------------------------------------

    async def ends(self) -> Ends:
        """The end of every partition of the topics, now."""
        partitions = []
        for topic in self._buffers:
            numbers = self._reader.partitions_for_topic(topic)
            if numbers is None:
                raise TransientError(f"the topic {topic} is not known yet")
            partitions += [TopicPartition(topic, number) for number in numbers]
        ends: Ends = await self._reader.end_offsets(partitions)
        return ends

    async def reach(self, ends: Ends) -> bool:
        """Wait until the tables hold everything below ``ends``; false when the session ends first.

        Callers who wait together are served by one commit.
        """
        if self._is_all_ours(ends) and self._is_settled(ends):
            return True
        self._waiting.append(ends)
        self.wake()
        try:
            async with self._settled:
                await self._settled.wait_for(lambda: self._is_over or ends not in self._waiting)
            return not self._is_over
        finally:
            if ends in self._waiting:
                self._waiting.remove(ends)

    def report(self) -> Mapping[str, TableReport]:
        return {
            buffer.name: TableReport(
                buffer.table.version, buffer.table.row_count, buffer.committed, buffer.byte_count
            )
            for buffer in self._buffers.values()
        }

    # The loop ----------------------------------------------------------------------------------

    async def follow(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            if self._must_own:
                await self._own()
            polled = await self._reader.getmany(timeout_ms=POLL_MILLIS, max_records=POLL_RECORDS)
            await self._take(polled)
            await self._commit(self._due())
            if self._waiting:
                await self._answer()
            elif sum(map(len, polled.values())) < FEW_RECORDS:
                await _wait(self._woken, REST_SECONDS)
            self._woken.clear()
        await self._commit(self._buffers.values())

    async def release(self) -> None:
        """The group is about to move partitions: what is not committed is dropped, not lost."""
        async with self._writing:
            self._must_own = True
            for buffer in self._buffers.values():
                buffer.own({}, {})

    def own(self) -> None:
        """The group has given partitions."""
        self._must_own = True
        self.wake()

    async def _own(self) -> None:
        """Stand where the tables stand, on every partition that the group has given."""
        self._must_own = False
        assigned = self._reader.assignment()
        earliest = await self._reader.beginning_offsets(assigned) if assigned else {}
        async with self._writing:
            if self._must_own:
                return
            for topic, buffer in self._buffers.items():
                await asyncio.to_thread(buffer.table.refresh)
                partitions = [each for each in assigned if each.topic == topic]
                recorded = {
                    each.partition: buffer.table.position(each.partition) for each in partitions
                }
                first = {each.partition: earliest[each] for each in partitions}
                buffer.own(recorded, first)
                for partition, offset in buffer.positions.items():
                    self._reader.seek(TopicPartition(topic, partition), offset)

    async def _take(self, polled: Mapping[TopicPartition, Sequence[ConsumerRecord]]) -> None:
        async with self._writing:
            for topic, buffer in self._buffers.items():
                batches = [batch for source, batch in polled.items() if source.topic == topic]
                if batches:
                    await asyncio.to_thread(buffer.take, batches)

    def _due(self) -> Collection[Buffer]:
        """Tables whose rows are many or old."""
        size = self._settings.offline_flush_bytes
        seconds = self._settings.offline_flush_interval.total_seconds()
        return [
            buffer
            for buffer in self._buffers.values()
            if buffer.byte_count >= size or buffer.age_seconds >= seconds
        ]

    async def _commit(self, buffers: Collection[Buffer]) -> None:
        async with self._writing:
            for buffer in buffers:
                if await asyncio.to_thread(buffer.commit):
                    self._commits[buffer.name] += 1
                    self._maintain(buffer)

    def _maintain(self, buffer: Buffer) -> None:
        is_busy = self._maintenance is not None and not self._maintenance.done()
        if is_busy or self._commits[buffer.name] < self._settings.offline_compact_every:
            return
        self._commits[buffer.name] = 0
        self._maintenance = asyncio.create_task(self._compact(buffer.name, buffer.table.path))

    async def _compact(self, name: str, path: Path) -> None:
        result = "done"
        try:
            await asyncio.to_thread(compact, path, retention=self._settings.offline_retention)
        except (DeltaError, OSError) as error:  # the next commits will ask again
            result = "failed"
            logger.warning(
                "offline table not compacted", extra={"path": str(path), "error": repr(error)}
            )
        metrics.COMPACTIONS.labels(self._name, name, result).inc()

    # Requests ----------------------------------------------------------------------------------

    async def _answer(self) -> None:
        """Commit for those who wait, once all that they wait for was read."""
        await self._pass_markers()
        if any(self._is_read(ends) for ends in self._waiting):
            await self._commit(self._buffers.values())
        if not all(self._is_all_ours(ends) for ends in self._waiting):
            await self._refresh()
        settled = [ends for ends in self._waiting if self._is_settled(ends)]
        if settled:
            async with self._settled:
                self._waiting = [ends for ends in self._waiting if ends not in settled]
                self._settled.notify_all()

    async def _pass_markers(self) -> None:
        """A transactional producer's markers take offsets and are no records."""
        async with self._writing:
            for topic, buffer in self._buffers.items():
                for partition in buffer.positions:
                    position = await self._reader.position(TopicPartition(topic, partition))
                    buffer.advance(partition, position)

    async def _refresh(self) -> None:
        """See what other replicas have committed of their partitions."""
        async with self._writing:
            for buffer in self._buffers.values():
                await asyncio.to_thread(buffer.table.refresh)

    def _buffer(self, source: TopicPartition) -> Buffer | None:
        """The one that takes in the partition; ``None`` when it is another replica's."""
        buffer = self._buffers[source.topic]
        return buffer if source.partition in buffer.positions else None

    def _is_read(self, ends: Ends) -> bool:
        """Whether our share of it is in the buffers or in the tables."""
        return all(
            buffer.positions[source.partition] >= end
            for source, end in ends.items()
            if (buffer := self._buffer(source)) is not None
        )

    def _is_all_ours(self, ends: Ends) -> bool:
        return all(self._buffer(source) is not None for source in ends)

    def _is_settled(self, ends: Ends) -> bool:
        return all(self._committed(source) >= end for source, end in ends.items())

    def _committed(self, source: TopicPartition) -> int:
        buffer = self._buffer(source)
        if buffer is not None:
            return buffer.committed[source.partition]
        return self._buffers[source.topic].table.position(source.partition) or 0


class _Reassignment(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    def __init__(self, session: _Session) -> None:
        self._session = session

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:  # noqa: ARG002
        await self._session.release()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:  # noqa: ARG002
        self._session.own()


def _buffer(name: str, pipeline: Pipeline, settings: Settings) -> Buffer:
    feed = _FEEDS[name]
    table = OfflineTable.open(
        table_path(settings.offline_store_path, pipeline.name, name),
        feed.topic.of(pipeline.name),
        schema=feed.schema(pipeline),
        retention=settings.offline_retention,
    )
    return Buffer(
        name,
        table,
        feed.shape,
        pipeline=pipeline.name,
        unreadable_share=settings.offline_unreadable_share,
    )


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Until the event, at most for so long."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
