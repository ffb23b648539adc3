"""The one right way to talk to Kafka: construction, headers, topics, compacted views."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.partitioner import murmur2

from homeostat.common.instants import MAX_MILLIS
from homeostat.common.topics import MAX_MESSAGE_BYTES, Topic

logger = logging.getLogger(__name__)

Headers = Sequence[tuple[str, bytes]]
T = TypeVar("T")

TRACEPARENT = "traceparent"
AVAILABLE_AT = "available_at"  # epoch ms; only a replayed record has it
SOURCE = "source"  # partition:offset of the record's immediate input
SOURCE_TOPIC = "source_topic"  # its topic, on records that come from more than one
# Also the delivery timeout of what is buffered: a broker that is away for less loses nobody an
# event.
REQUEST_TIMEOUT_MS = 40_000
# A view reads one partition: the broker answers at once when there is news, so ask seldom.
VIEW_WAIT_MS = 1_000


_send = AIOKafkaConnection.send


def _send_unless_closed(
    connection: AIOKafkaConnection, request: Any, expect_response: bool = True
) -> Any:
    """aiokafka's own, which ends clients for good on uvloop (aio-libs/aiokafka#1038).

    Between the end of a connection and aiokafka's notice of it, asyncio's transport drops what is
    written and uvloop's raises ``RuntimeError``. aiokafka expects ``OSError`` alone: the task that
    keeps its metadata fresh ends, and everything that waits for metadata waits forever.
    """
    try:
        return _send(connection, request, expect_response)
    except RuntimeError as error:
        connection.close(reason=CloseReason.CONNECTION_BROKEN, exc=error)
        raise KafkaConnectionError(
            f"Connection at {connection.host}:{connection.port} broken: {error}"
        ) from error


AIOKafkaConnection.send = _send_unless_closed


def producer(bootstrap_servers: str, *, client_id: str, **options: Any) -> AIOKafkaProducer:
    """An idempotent producer, ``acks=all``.

    ``options`` may only tune it (linger, transactional id).
    """
    return AIOKafkaProducer(
        bootstrap_servers=bootstrap_servers,
        client_id=client_id,
        **{
            "enable_idempotence": True,
            "acks": "all",
            "request_timeout_ms": REQUEST_TIMEOUT_MS,
            "max_batch_size": 512_000,
            "max_request_size": MAX_MESSAGE_BYTES,
            "retry_backoff_ms": 100,
            **options,
        },
    )


def consumer(
    *names: str, bootstrap_servers: str, client_id: str, group_id: str | None = None, **options: Any
) -> AIOKafkaConsumer:
    """A consumer that starts at the beginning and commits only when told to."""
    return AIOKafkaConsumer(
        *names,
        bootstrap_servers=bootstrap_servers,
        client_id=client_id,
        group_id=group_id,
        **{
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "max_partition_fetch_bytes": 4_000_000,
            "fetch_max_wait_ms": 200,
            "retry_backoff_ms": 100,
            **options,
        },
    )


def partition_of(key: bytes, partitions: int) -> int:
    """The partition that Kafka's default partitioner gives a key."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def header(headers: Headers, name: str) -> str | None:
    """The last header of a name; text, because every header of ours is."""
    for key, value in reversed(headers):
        if key == name:
            return value.decode(errors="replace")
    return None


def available_at(headers: Headers) -> int | None:
    """The replayer's instant of a record (epoch ms), ``None`` for a live one."""
    return instant(dict(headers).get(AVAILABLE_AT))


def instant(value: bytes | None) -> int | None:
    """A header's instant (epoch ms); a clock that it puts beyond the calendar would stop us all."""
    millis = natural(value)
    return millis if millis is not None and millis <= MAX_MILLIS else None


def natural(value: bytes | None) -> int | None:
    """A header's number, of at most 18 digits; ``None`` for anything else.

    Anybody can write to a topic: a header that is none of ours must stop no consumer.
    """
    return int(value) if value is not None and value.isdigit() and len(value) <= 18 else None


def position(value: bytes | None) -> tuple[int, int] | None:
    """Partition and offset in a ``source`` header: a record's identity on its hop."""
    partition, _, offset = (value or b"").partition(b":")
    first, second = natural(partition), natural(offset)
    return None if first is None or second is None else (first, second)


@dataclass(frozen=True)
class Installation:
    """What differs between a laptop and a cluster."""

    partitions: int = 4
    replication: int = 1

    @classmethod
    def from_environment(cls) -> Installation:
        return cls(
            partitions=int(os.environ.get("KAFKA_PARTITIONS", "4")),
            replication=int(os.environ.get("KAFKA_REPLICATION", "1")),
        )


async def ensure_topics(
    bootstrap_servers: str,
    declared: Iterable[tuple[str, Topic]],
    installation: Installation | None = None,
) -> None:
    """Create the topics that are missing; existing ones are left as they are."""
    installation = installation or Installation.from_environment()
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers, request_timeout_ms=10_000)
    await admin.start()
    try:
        existing = set(await admin.list_topics())
        missing = [
            _new_topic(name, topic, installation)
            for name, topic in declared
            if name not in existing
        ]
        if missing:
            response = await admin.create_topics(missing)
            for name, code, *_ in response.topic_errors:
                error = for_code(code)
                if code and error is not TopicAlreadyExistsError:
                    raise error(f"topic {name} could not be created")
    finally:
        await admin.close()


async def delete_topics(bootstrap_servers: str, names: Sequence[str]) -> None:
    """Delete topics with all that is on them; one that is gone already is no error."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers, request_timeout_ms=10_000)
    await admin.start()
    try:
        response = await admin.delete_topics([*names])
        for name, code in response.topic_error_codes:
            error = for_code(code)
            if code and error is not UnknownTopicOrPartitionError:
                raise error(f"topic {name} could not be deleted")
    finally:
        await admin.close()


def _new_topic(name: str, topic: Topic, installation: Installation) -> NewTopic:
    retention = -1 if topic.retention is None else round(topic.retention.total_seconds() * 1000)
    configuration = {"max.message.bytes": str(MAX_MESSAGE_BYTES + 50_000)}
    if topic.compacted:
        configuration |= {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.1"}
    else:
        configuration["retention.ms"] = str(retention)
    return NewTopic(
        name=name,
        num_partitions=topic.partitions or installation.partitions,
        replication_factor=installation.replication,
        topic_configs=configuration,
    )


class CompactedView(Generic[T]):
    """The latest value of every key of a compacted topic, followed live and kept on local disk.

    It starts from the disk, so a service comes up with the last good values while Kafka is away. A
    record that cannot be decoded is counted and leaves the value before in place.

    ``on_change`` is called with a key's newest value, or with ``None`` when it is gone: for what
    the disk had, for what the topic holds once that is read to its end, and then as records come.
    """

    def __init__(
        self,
        topic: Topic,
        decode: Callable[[bytes], T],
        *,
        bootstrap_servers: str,
        client_id: str,
        directory: Path | None = None,
        on_change: Callable[[str, T | None], None] | None = None,
        is_newer: Callable[[T, T], bool] = lambda _new, _old: True,
    ) -> None:
        self._topic = topic.of()
        self._decode = decode
        self._bootstrap_servers = bootstrap_servers
        self._client_id = client_id
        self._cache = directory / f"{self._topic}.msgpack" if directory else None
        self._on_change = on_change
        self._is_newer = is_newer
        self._raw: dict[str, bytes] = {}
        self._values: dict[str, T] = {}  # as far as was read, which may be amid history
        self._shown: dict[str, T] = {}  # one object for good: readers hold it
        self._untold: dict[str, None] = {}
        self._told: set[str] = set()
        self._caught_up = asyncio.Event()
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._position = 0
        self.undecodable = 0

    @property
    def positions(self) -> dict[str, dict[str, int]]:
        """The view's part of a progress answer: every record below is applied."""
        return {self._topic: {"0": self._position}}

    @property
    def values(self) -> Mapping[str, T]:
        """The last whole state, live and never from amid the topic's history."""
        return self._shown

    @property
    def is_caught_up(self) -> bool:
        """Whether the topic was read to its end once since the start."""
        return self._caught_up.is_set()

    @property
    def is_usable(self) -> bool:
        """Caught up, or standing on what the disk had."""
        return self.is_caught_up or bool(self._told)

    async def start(self) -> None:
        """Load what the disk has and follow the topic; returns at once."""
        self._load()
        self._task = asyncio.create_task(self._follow(), name=f"view of {self._topic}")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def caught_up(self) -> None:
        await self._caught_up.wait()

    async def wait_for(self, predicate: Callable[[Mapping[str, T]], bool]) -> None:
        """Wait until the values satisfy ``predicate``."""
        async with self._changed:
            await self._changed.wait_for(lambda: predicate(self._shown))

    async def _follow(self) -> None:
        backoff = 0.2
        while True:
            try:
                await self._read()
            except (KafkaError, OSError) as error:
                logger.warning(
                    "compacted topic unavailable",
                    extra={"topic": self._topic, "error": repr(error)},
                )
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, 5.0)

    async def _read(self) -> None:
        reader = consumer(
            bootstrap_servers=self._bootstrap_servers,
            client_id=self._client_id,
            isolation_level="read_committed",
            fetch_max_wait_ms=VIEW_WAIT_MS,
        )
        try:
            await reader.start()
            partition = TopicPartition(self._topic, 0)
            reader.assign([partition])
            await reader.seek_to_beginning(partition)
            end = (await reader.end_offsets([partition]))[partition]
            while True:
                self._position = await reader.position(partition)
                if self._position >= end:  # before that it is history, which need not hold any more
                    self._caught_up.set()
                    await self._announce()
                batches = await reader.getmany(timeout_ms=VIEW_WAIT_MS)
                for record in (record for batch in batches.values() for record in batch):
                    self._apply(record.key.decode(), record.value)
        finally:
            await reader.stop()

    async def _announce(self) -> None:
        """Keep and tell what has changed, if anything has."""
        if not self._untold:
            return
        self._tell()
        async with self._changed:
            self._changed.notify_all()
        try:
            self._save()
        except OSError as error:  # what the topic says is followed whether it can be kept or not
            logger.warning("local snapshot not kept", extra={"error": str(error)})

    def _apply(self, key: str, value: bytes | None) -> None:
        if value is None:
            self._raw.pop(key, None)
            if self._values.pop(key, None) is not None:
                self._untold[key] = None
            return
        if self._raw.get(key) == value:
            return
        try:
            new = self._decode(value)
        except ValueError as error:  # msgspec's and pydantic's errors are ValueErrors
            self.undecodable += 1
            logger.error(
                "snapshot refused, the last good one stays",
                extra={"topic": self._topic, "key": key, "error": str(error)},
            )
            return
        old = self._values.get(key)
        if old is not None and not self._is_newer(new, old):
            return
        self._raw[key] = value
        self._values[key] = new
        self._untold[key] = None

    def _tell(self) -> None:
        """Hand every key that has changed to ``on_change``; one that came and went is skipped."""
        changed, self._untold = self._untold, {}
        for key in changed:
            if key in self._values:
                self._shown[key] = self._values[key]
            else:
                self._shown.pop(key, None)
        for key in changed:
            value = self._values.get(key)
            if value is None and key not in self._told:
                continue
            (self._told.discard if value is None else self._told.add)(key)
            if self._on_change:
                self._on_change(key, value)

    def _load(self) -> None:
        if self._cache is None or not self._cache.exists():
            return
        try:
            kept = msgspec.msgpack.decode(self._cache.read_bytes(), type=dict[str, bytes])
        except (msgspec.DecodeError, OSError) as error:
            logger.warning("local snapshot unreadable", extra={"error": str(error)})
            return
        for key, value in kept.items():
            self._apply(key, value)
        self._tell()

    def _save(self) -> None:
        if self._cache is None:
            return
        self._cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._cache.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(msgspec.msgpack.encode(self._raw))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._cache)
