"""Faust agents that take record batches, and a consumer that never trusts a group's commits.

Faust costs about 100 µs of Python for each event between its consumer and an agent's ``async
for``. Here one Faust message is one *partition fetch*, its value the list of records, so that the
work below an agent can be columnar. At low load a fetch is one event, and latency stays.

Where a partition starts is not what the group has committed but what its owner restores from its
own transactional state: ``perform_seek`` asks ``Positions.acquire``, and ``commit`` does nothing.

All of this leans on private names of Faust, whose version is pinned; the tests that kill and
rebalance workers prove that it holds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, Protocol, cast

import faust
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from faust.events import Event
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from homeostat.common import kafka

RecordBatch = Sequence[ConsumerRecord]
# Restoring a large state lasts; Faust cancels a seek, and so a restore, after its request timeout.
RESTORE_PATIENCE = timedelta(minutes=15)


class Positions(Protocol):
    """Who owns the state of partitions, and therefore knows where each one goes on."""

    async def acquire(self, partitions: Set[TP]) -> Mapping[TP, int]:
        """Take over the partitions; what is returned is the next offset of each."""
        ...


@dataclass(frozen=True)
class GroupSettings:
    bootstrap_servers: str
    group_id: str
    session_timeout: timedelta
    max_records: int
    fetch_wait: timedelta
    restore_patience: timedelta = RESTORE_PATIENCE


class Seen(NamedTuple):
    """What the broker last said of a partition."""

    end: int  # the offset behind its last record
    at: int  # epoch ms


class BatchConsumer(driver.Consumer):
    """Yields one message per partition and fetch; its value is the list of records."""

    app: BatchApp

    def _new_consumer_thread(self) -> driver.AIOKafkaConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def getmany(
        self,
        timeout: float,  # noqa: ASYNC109 - Faust's signature
    ) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        records_by_tp, active = await self._wait_next_records(timeout)
        if records_by_tp is None or self.should_stop:
            return
        generation = self.app.consumer_generation_id
        for tp, records in records_by_tp.items():
            if not self.flow_active or self.app.consumer_generation_id != generation:
                return  # rebalancing: the next owner starts from the state, not from here
            if records and (active is None or tp in active or tp in self._buffered_partitions):
                yield tp, self._message(tp, records, generation)

    @staticmethod
    def _message(tp: TP, records: list[ConsumerRecord], generation: int) -> ConsumerMessage:
        last = records[-1]
        return ConsumerMessage(
            last.topic,
            last.partition,
            last.offset,
            last.timestamp / 1000.0,
            last.timestamp_type,
            [],
            None,
            cast(Any, records),
            None,
            0,
            0,
            tp,
            generation_id=generation,
        )

    def last_seen(self, partition: TopicPartition) -> Seen | None:
        """What the last fetch said, with or without records; ``None`` before the first."""
        consumer = cast(_ConsumerThread, self._thread)._consumer
        subscription = consumer._subscription.subscription if consumer is not None else None
        assignment = subscription.assignment if subscription is not None else None
        if assignment is None or partition not in assignment.tps:
            return None
        state = assignment.state_value(partition)
        if state.highwater is None or state.timestamp is None:
            return None
        return Seen(state.highwater, state.timestamp)

    async def perform_seek(self) -> None:
        assignment = self.assignment()
        positions = await self.app.positions.acquire(assignment)
        self._read_offset.clear()
        await self.seek_wait(positions)

    async def commit(
        self,
        topics: Any = None,  # noqa: ARG002 - Faust's signature
        start_new_transaction: bool = True,  # noqa: ARG002
    ) -> bool:
        """Commit nothing, and forget the acknowledgements that Faust has piled up for it."""
        self._acked.clear()
        self._acked_index.clear()
        self._gap.clear()
        return False

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Offsets inside a batch are not gaps."""


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(
        self,
        transport: driver.Transport,  # noqa: ARG002 - Faust's signature
    ) -> AIOKafkaConsumer:
        group = cast(BatchApp, self.app).group
        self._assignor = RoundRobinPartitionAssignor
        return kafka.consumer(
            bootstrap_servers=group.bootstrap_servers,
            client_id=group.group_id,
            group_id=group.group_id,
            partition_assignment_strategy=[RoundRobinPartitionAssignor],
            max_poll_records=group.max_records,
            max_poll_interval_ms=_millis(group.restore_patience),
            fetch_max_wait_ms=_millis(group.fetch_wait),
            session_timeout_ms=_millis(group.session_timeout),
            heartbeat_interval_ms=_millis(group.session_timeout / 6),
        )


class _BatchSchema(faust.Schema[Any, Any]):
    """Hands the batch to the agent untouched."""

    def compile(
        self,
        app: Any,
        **_policies: Any,
    ) -> Callable[..., Any]:
        async def decode(message: Any, **_policies: Any) -> Event:
            return Event(app, None, message.value, {}, message)

        return decode


class BatchApp(faust.App):
    """A Faust application of one consumer group over record batches."""

    positions: Positions
    group: GroupSettings

    @classmethod
    def of(cls, group: GroupSettings, positions: Positions) -> BatchApp:
        session = group.session_timeout.total_seconds()
        app = cls(
            group.group_id,
            broker=";".join(f"kafka://{host}" for host in group.bootstrap_servers.split(",")),
            store="memory://",
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            broker_session_timeout=session,
            broker_heartbeat_interval=session / 6,
            broker_request_timeout=group.restore_patience.total_seconds(),
            broker_max_poll_records=group.max_records,
            stream_buffer_maxsize=8,  # batches
            stream_wait_empty=True,
        )
        app.group, app.positions = group, positions
        app.transport.Consumer = BatchConsumer  # type: ignore[misc]  # of this app's transport alone
        return app

    def last_seen(self, partition: TopicPartition) -> Seen | None:
        return cast(BatchConsumer, self.consumer).last_seen(partition)

    def _create_directories(self) -> None:
        """Nothing: no Faust table exists, and the working directory is not ours to write in."""

    def take_batches(self, topic: str, process: Callable[[RecordBatch], Awaitable[None]]) -> None:
        """One agent for the record batches of a topic."""
        channel = self.topic(topic, schema=_BatchSchema(), value_serializer="raw")

        async def agent(stream: faust.StreamT[RecordBatch]) -> None:
            async for records in stream:
                await process(records)

        self.agent(channel, name=topic)(agent)


def _millis(duration: timedelta) -> int:
    return round(duration.total_seconds() * 1000)
