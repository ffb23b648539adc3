"""One pipeline's watch: ledger and outcomes in, one transaction for state and offsets, then alerts
out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from sqlalchemy.exc import SQLAlchemyError

from homeostat.common import kafka, topics
from homeostat.common.clock import Clock, PipelineClock
from homeostat.common.errors import InvalidEvent, TransientError
from homeostat.common.schemas.alerts import Alert
from homeostat.common.schemas.labels import Outcome
from homeostat.drift import metrics
from homeostat.drift.columns import outcomes_of, read_outcomes, read_predictions
from homeostat.drift.instruments import Instruments
from homeostat.drift.monitor import Input, Labels, Monitor, Outputs, State, Tick
from homeostat.drift.store import Lease, Store

logger = logging.getLogger(__name__)

CLIENT_ID = "drift"
POLL_MILLIS = 50
# An outcome is a record; of Arrow records, with up to some thousand rows, a fetch holds few. Every
# poll that brings labels asks for the ends of their topic.
POLL_RECORDS = 2_000
QUIET_SECONDS = 0.05  # between commits when everything is read
STANDBY_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 5.0

Records = Mapping[TopicPartition, Sequence[ConsumerRecord]]


class Watch:
    """Watches one pipeline whenever this replica holds its lease.

    ``positions`` move only after the commit, and after its alerts are acknowledged by the broker.
    """

    def __init__(
        self,
        name: str,
        monitor: Callable[[], Monitor | None],
        store: Store,
        producer: AIOKafkaProducer,
        *,
        bootstrap_servers: str,
        commit_seconds: float,
        wall: Clock,
    ) -> None:
        self.name = name
        self.state = State()
        self.positions: dict[tuple[str, int], int] = {}
        self.is_leading = False
        self._monitor = monitor
        self._store = store
        self._producer = producer
        self._bootstrap_servers = bootstrap_servers
        self._commit_seconds = commit_seconds
        self._wall = wall
        self._clock = PipelineClock(wall)
        self._instruments = Instruments(name)
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def clock_millis(self) -> int:
        return self._clock.now_millis()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"watch of {self.name}")

    async def stop(self) -> None:
        """Finish the batch in hand, commit, and let go of the lease."""
        self._stopping.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def failure(self) -> BaseException | None:
        """Why the watch ended although nobody stopped it."""
        if self._task is None or not self._task.done() or self._task.cancelled():
            return None
        return self._task.exception()

    async def _run(self) -> None:
        backoff = 0.2
        while not self._stopping.is_set():
            try:
                async with self._store.lease(self.name) as lease:
                    if lease is not None:
                        backoff = 0.2
                        await self._lead(lease)
                    else:
                        await self._rest(STANDBY_SECONDS)
            except (TransientError, SQLAlchemyError, KafkaError, OSError, TimeoutError) as error:
                logger.warning(
                    "watch interrupted, it resumes from its last commit",
                    extra={"pipeline": self.name, "error": repr(error)},
                )
                await self._rest(backoff)
                backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)
            finally:
                self.is_leading = False

    async def _rest(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

    async def _lead(self, lease: Lease) -> None:
        monitor = self._monitor()
        if monitor is None:
            raise TransientError(f"the pipeline {self.name} is not known yet")
        saved = await lease.load(width=monitor.slice_millis)
        self.state = saved.state
        self._clock = PipelineClock(self._wall)
        self._clock.observe(saved.replayed_clock)
        session = _Session(self, lease, width=monitor.slice_millis)
        await session.publish(saved.unpublished)
        reader = await self._reader(saved.offsets)
        try:
            await self._follow(session, reader)
        finally:
            await reader.stop()

    async def _reader(self, offsets: Mapping[tuple[str, int], int]) -> AIOKafkaConsumer:
        names = [topic.of(self.name) for topic in (topics.PREDICTIONS, topics.OUTCOMES)]
        partitions = await _partitions(names, self._bootstrap_servers)
        reader = kafka.consumer(
            bootstrap_servers=self._bootstrap_servers,
            client_id=CLIENT_ID,
            max_partition_fetch_bytes=1_000_000,
            fetch_max_wait_ms=POLL_MILLIS,
        )
        await reader.start()
        reader.assign(partitions)
        start = await reader.beginning_offsets(partitions)
        for partition in partitions:
            kept = offsets.get((partition.topic, partition.partition), start[partition])
            if kept < start[partition]:
                logger.error(
                    "records expired before they were read",
                    extra={"topic": partition.topic, "lost": start[partition] - kept},
                )
            position = max(kept, start[partition])
            reader.seek(partition, position)
            self.positions[partition.topic, partition.partition] = position
        return reader

    async def _follow(self, session: _Session, reader: AIOKafkaConsumer) -> None:
        labelled = topics.OUTCOMES.of(self.name)
        partitions = [each for each in reader.assignment() if each.topic == labelled]
        progress = LabelProgress(
            {each: self.positions[each.topic, each.partition] for each in partitions}
        )
        self.is_leading = True
        while not self._stopping.is_set():
            monitor = self._monitor()
            if monitor is None or monitor.slice_millis != session.width:
                await session.commit()
                raise TransientError("the pipeline has changed")
            records: Records = await reader.getmany(
                timeout_ms=POLL_MILLIS, max_records=POLL_RECORDS
            )
            has_labels = any(partition in partitions for partition in records)
            ends = await reader.end_offsets(partitions) if has_labels else {}
            session.take(monitor, records, progress, ends)
            wait = self._commit_seconds if records else QUIET_SECONDS
            if session.is_dirty and session.seconds_since_commit >= wait:
                await session.commit()
                self._instruments.show(self.state, monitor)
        await session.commit()

    def step(self, monitor: Monitor, item: Input) -> Outputs:
        self.state, outputs = monitor.step(self.state, item, self._clock.now_millis())
        return outputs

    def observe(self, instant: int | None) -> None:
        self._clock.observe(instant)

    @property
    def replayed_clock(self) -> int | None:
        return self._clock.now_millis() if self._clock.is_replayed else None

    @property
    def instruments(self) -> Instruments:
        return self._instruments

    async def send(self, alert: Alert) -> None:
        """Publish one alert and wait for the broker; under replay with the pipeline's instant."""
        headers = []
        if self._clock.is_replayed:
            headers.append((kafka.AVAILABLE_AT, str(alert.at).encode()))
        await self._producer.send_and_wait(
            topics.ALERTS.of(self.name),
            msgspec.json.encode(alert),
            key=self.name.encode(),
            headers=headers,
        )


class _Session:
    """What happens between taking the lease and losing it: steps, and commits of what they gave."""

    def __init__(self, watch: Watch, lease: Lease, *, width: int) -> None:
        self.width = width
        self._watch = watch
        self._lease = lease
        self._offsets: dict[tuple[str, int], int] = {}
        self._alerts: list[Alert] = []
        self._published: list[str] = []
        self._kept = watch.state
        self._committed_at = time.monotonic()

    @property
    def is_dirty(self) -> bool:
        return bool(self._offsets) or self._watch.state is not self._kept

    @property
    def seconds_since_commit(self) -> float:
        return time.monotonic() - self._committed_at

    def take(
        self,
        monitor: Monitor,
        records: Records,
        progress: LabelProgress,
        ends: Mapping[TopicPartition, int],
    ) -> None:
        """Step through what one poll brought; without records only time has passed."""
        for batch in records.values():
            for record in batch:
                self._watch.observe(kafka.available_at(record.headers))
        predictions, outcomes = (
            _of_topic(records, topic.of(self._watch.name)) for topic in _INPUTS
        )
        if predictions:
            self._take_predictions(monitor, predictions)
        if outcomes:
            found = self._read_outcomes(outcomes, progress)
            until = progress.complete_until(ends, before=self._watch.state.labels_until)
            labels = Labels(outcomes_of(found), until)
            outputs = self._watch.step(monitor, labels)
            self._collect(outputs)
            self._watch.instruments.count_outcomes(labels, outputs)
        if not records:
            self._collect(self._watch.step(monitor, Tick()))
        for partition, batch in records.items():
            next_offset = batch[-1].offset + 1
            self._offsets[partition.topic, partition.partition] = next_offset

    def _take_predictions(self, monitor: Monitor, records: Records) -> None:
        rows, refused = read_predictions(_values(records))
        outputs = self._watch.step(monitor, rows)
        self._collect(outputs)
        self._watch.instruments.count_predictions(rows, outputs)
        self._tell(refused, topics.PREDICTIONS)

    def _read_outcomes(self, records: Records, progress: LabelProgress) -> list[Outcome]:
        found: list[Outcome] = []
        for partition, batch in records.items():
            rows, refused = read_outcomes([record.value for record in batch])
            progress.advance(partition, batch[-1].offset + 1, rows)
            self._tell(refused, topics.OUTCOMES)
            found += rows
        return found

    def _tell(self, refused: Sequence[InvalidEvent], topic: topics.Topic) -> None:
        """Internal topics hold only what our own services wrote: unreadable means a fault of
        ours."""
        if refused:
            self._watch.instruments.count_unreadable(topic, len(refused))
            logger.error(
                "records could not be read",
                extra={"topic": topic.of(self._watch.name), "error": str(refused[0])},
            )

    def _collect(self, outputs: Outputs) -> None:
        for alert in outputs.alerts:
            logger.warning(
                "drift alert",
                extra={"pipeline": alert.pipeline, "alert": alert.id, "what": alert.message},
            )
            metrics.ALERTS.labels(alert.pipeline, alert.kind, alert.cause).inc()
            self._alerts.append(alert)

    async def commit(self) -> None:
        """Commit first, alert then: an alert that went out belongs to a state that is kept."""
        alerts, offsets = self._alerts, self._offsets
        started = time.monotonic()
        await self._lease.save(
            self._watch.state,
            width=self.width,
            replayed_clock=self._watch.replayed_clock,
            offsets=offsets,
            alerts=alerts,
            published=self._published,
        )
        self._kept = self._watch.state
        self._alerts, self._offsets, self._published = [], {}, []
        self._committed_at = time.monotonic()
        metrics.COMMIT_SECONDS.labels(self._watch.name).observe(self._committed_at - started)
        await self.publish(alerts)
        self._watch.positions.update(offsets)

    async def publish(self, alerts: Sequence[Alert]) -> None:
        """Send alerts that are committed; the next commit notes that they went out."""
        for alert in alerts:
            await self._watch.send(alert)
            self._published.append(alert.id)


class LabelProgress:
    """How far labels are known to be complete, over all partitions of the outcomes topic.

    A partition that is read to its end holds nobody back; one that is not knows labels up to its
    last record only.
    """

    def __init__(self, positions: Mapping[TopicPartition, int]) -> None:
        self._positions = dict(positions)
        self._newest: dict[TopicPartition, int] = {}

    def advance(self, partition: TopicPartition, position: int, rows: Sequence[Outcome]) -> None:
        self._positions[partition] = position
        instants = [row.available_at for row in rows]
        if instants:
            self._newest[partition] = max([*instants, self._newest.get(partition, 0)])

    def complete_until(
        self, ends: Mapping[TopicPartition, int], *, before: int | None
    ) -> int | None:
        """The instant, or ``before`` while a partition that has more to read has not said
        anything."""
        behind = [
            partition
            for partition, position in self._positions.items()
            if position < ends.get(partition, 0)
        ]
        if any(partition not in self._newest for partition in behind):
            return before
        return min(
            (self._newest[partition] for partition in behind),
            default=max(self._newest.values(), default=before),
        )


_INPUTS = (topics.PREDICTIONS, topics.OUTCOMES)


def _of_topic(records: Records, name: str) -> Records:
    return {partition: batch for partition, batch in records.items() if partition.topic == name}


def _values(records: Records) -> list[bytes]:
    return [record.value for batch in records.values() for record in batch]


async def _partitions(names: Sequence[str], bootstrap_servers: str) -> list[TopicPartition]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers, request_timeout_ms=10_000)
    await admin.start()
    try:
        described: list[dict[str, Any]] = await admin.describe_topics(list(names))
    finally:
        await admin.close()
    missing = [item["topic"] for item in described if not item["partitions"]]
    if missing:
        raise TransientError(f"no such topic yet: {', '.join(missing)}")
    return [
        TopicPartition(item["topic"], partition["partition"])
        for item in described
        for partition in item["partitions"]
    ]
