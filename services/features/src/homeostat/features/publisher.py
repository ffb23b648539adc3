"""What leaves the worker: records in prepared batches, one for each target partition."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer

from homeostat.features.hops import H, by_partition
from homeostat.features.partitioning import partitions_of


class Outgoing(NamedTuple):
    """A record to be sent; order is kept among those of one topic and key."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    partition: int | None = None  # the key decides


Outputs = Mapping[str, Sequence[Outgoing]]  # by topic
Sending = defaultdict[str, list[Outgoing]]  # the same, while it is gathered
Acknowledgement = asyncio.Future[Any]


class Publisher:
    """Sends through one idempotent producer; ``send`` costs 40 µs a record there, a batch one."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer

    async def publish(self, outputs: Outputs) -> list[Acknowledgement]:
        """Hand the records to the producer; the futures tell when the broker has them."""
        acknowledgements: list[Acknowledgement] = []
        for topic, records in outputs.items():
            if records:
                count = len(await self._producer.partitions_for(topic))
                for partition, chosen in _by_partition(records, count).items():
                    acknowledgements += await send_batches(self._producer, topic, partition, chosen)
        return acknowledgements


def by_target(
    hops: H, keys: Sequence[bytes], partitions: int, encode: Callable[[H], Iterable[bytes]]
) -> Iterator[Outgoing]:
    """Records of hops for an entity's log: each hop in the partition of its key."""
    for partition, part in by_partition(hops, partitions_of(keys, partitions)):
        for value in encode(part):
            yield Outgoing(None, value, (), partition)


async def send_batches(
    producer: AIOKafkaProducer, topic: str, partition: int, records: Iterable[Outgoing]
) -> list[Acknowledgement]:
    """Send the records to one partition, in as few batches as they fit into."""
    acknowledgements = []
    batch = producer.create_batch()
    for key, value, headers, _ in records:
        fits = batch.append(timestamp=None, key=key, value=value, headers=list(headers))
        if fits is None:
            acknowledgements.append(await producer.send_batch(batch, topic, partition=partition))
            batch = producer.create_batch()
            batch.append(timestamp=None, key=key, value=value, headers=list(headers))
    if batch.record_count():
        acknowledgements.append(await producer.send_batch(batch, topic, partition=partition))
    return acknowledgements


def _by_partition(records: Sequence[Outgoing], count: int) -> dict[int, list[Outgoing]]:
    chosen: dict[int, list[Outgoing]] = {}
    partitions = partitions_of([record.key or b"" for record in records], count)
    for by_key, record in zip(partitions, records, strict=True):
        partition = by_key if record.partition is None else record.partition
        chosen.setdefault(partition, []).append(record)
    return chosen
