"""The durable state of one input partition: rows and position in one Kafka transaction.

A partition's state is a partition of a compacted topic: one record a row, keyed by entity key,
chunks of event ids, and a *marker* that says which prefix of the input the rows are the fold of.
They are written together, in a transaction whose id belongs to the input partition. So taking
over a partition fences whoever had it before: a zombie's commit is refused.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from homeostat.common import kafka
from homeostat.features.publisher import Outgoing, send_batches

logger = logging.getLogger(__name__)

# Entity keys contain no control characters, so that these never meet one.
_MARKER = b"\x00marker:"
_IDS = b"\x00ids:"


class Marker(msgspec.Struct, array_like=True):
    """Which prefix of an input partition the rows beside it are the fold of, and what it held.

    ``seen`` is the last offset by upstream stream and partition: what comes again is dropped.
    """

    epoch: int = 0  # grows with each assignment
    position: int = 0  # next input offset
    pipeline_time: int = 0  # newest intake, epoch ms
    counters: dict[str, int] = msgspec.field(default_factory=dict)
    seen: dict[str, dict[int, int]] = msgspec.field(default_factory=dict)


@dataclass
class Restored:
    marker: Marker = field(default_factory=Marker)
    rows: dict[str, bytes] = field(default_factory=dict)
    ids: dict[int, bytes] = field(default_factory=dict)
    input_begins: int = 0  # the first offset that the input still has
    input_ends: int = 0  # behind its last record

    def take(self, marker_key: bytes, key: bytes, value: bytes | None) -> None:
        """Apply one record; a later one of the same key stands."""
        if key == marker_key:
            self.marker = _decode(value or b"")
        elif key.startswith(_IDS):
            _set(self.ids, int(key[len(_IDS) :]), value)
        elif not key.startswith(_MARKER):
            _set(self.rows, key.decode(), value)


@dataclass
class Changes:
    """What has changed since the last commit."""

    rows: dict[str, bytes] = field(default_factory=dict)
    ids: dict[int, bytes | None] = field(default_factory=dict)

    def update(self, other: Changes) -> None:
        self.rows.update(other.rows)
        self.ids.update(other.ids)

    def records(self) -> Iterable[Outgoing]:
        for key, row in self.rows.items():
            yield Outgoing(key.encode(), row)
        for number, chunk in self.ids.items():
            yield Outgoing(_IDS + b"%d" % number, chunk)


class Changelog:
    """Owns the transactional producer of one input partition."""

    def __init__(self, producer: AIOKafkaProducer, topic: str, source: TopicPartition) -> None:
        self._producer = producer
        self._topic = topic
        self._source = source
        self._partition = source.partition
        self._marker_key = _MARKER + source.topic.encode()

    async def restore(self, bootstrap_servers: str) -> Restored:
        """Read the committed state to its end."""
        restored = Restored()
        async with _reader(bootstrap_servers, self._topic, self._partition) as reader:
            partition = TopicPartition(self._topic, self._partition)
            end = (await reader.end_offsets([partition]))[partition]
            first = await reader.beginning_offsets([self._source])
            last = await reader.end_offsets([self._source])
            restored.input_begins = first[self._source]
            restored.input_ends = last[self._source]
            while await reader.position(partition) < end:
                for records in (await reader.getmany(timeout_ms=200)).values():
                    for record in records:
                        restored.take(self._marker_key, record.key, record.value)
        return restored

    async def commit(self, changes: Changes, marker: Marker) -> None:
        """Write rows and marker, all or nothing; refused when somebody else has taken over.

        Raises:
            ProducerFenced: the partition has a new owner.
        """
        async with self._producer.transaction():
            records = [*changes.records(), Outgoing(self._marker_key, _encode(marker))]
            for acknowledgement in await send_batches(
                self._producer, self._topic, self._partition, records
            ):
                await acknowledgement

    async def close(self) -> None:
        await self._producer.stop()


async def open_changelog(
    source: TopicPartition,
    topic: str,
    *,
    bootstrap_servers: str,
    transaction_timeout: timedelta,
) -> Changelog:
    """Take over a partition: its predecessor's transaction ends here, and no other will begin."""
    identity = f"{topic}-{source.topic}-{source.partition}"
    producer = kafka.producer(
        bootstrap_servers,
        client_id=identity,
        transactional_id=identity,
        transaction_timeout_ms=round(transaction_timeout.total_seconds() * 1000),
    )
    try:
        await producer.start()
    except BaseException:
        await producer.stop()
        raise
    return Changelog(producer, topic, source)


@asynccontextmanager
async def _reader(
    bootstrap_servers: str, topic: str, partition: int
) -> AsyncIterator[AIOKafkaConsumer]:
    reader = kafka.consumer(
        bootstrap_servers=bootstrap_servers,
        client_id=f"restore-{topic}-{partition}",
        isolation_level="read_committed",
    )
    await reader.start()
    try:
        assigned = TopicPartition(topic, partition)
        reader.assign([assigned])
        await reader.seek_to_beginning(assigned)
        yield reader
    finally:
        await reader.stop()


def _set(into: dict, key: object, value: bytes | None) -> None:  # type: ignore[type-arg]  # by key
    if value is None:
        into.pop(key, None)
    else:
        into[key] = value


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Marker).decode
