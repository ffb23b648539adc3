"""What a log held before its topic begins: the records that the offline store has kept of it.

They are the same bytes under the same offsets, so that a new definition folds them as it folds the
topic, and there is no seam between the two.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import groupby
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset as ds
from aiokafka import ConsumerRecord, TopicPartition
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

AT_ONCE = 200  # records


async def kept_records(
    table: Path, source: TopicPartition, *, begin: int, end: int
) -> AsyncIterator[Sequence[ConsumerRecord]]:
    """Runs of records of a partition, from the offset ``begin`` to below ``end``, in order.

    Between two runs the store has none, nor if there is no store.

    Raises:
        DeltaError, OSError: the store cannot be read.
    """
    try:
        dataset = await asyncio.to_thread(lambda: DeltaTable(table).to_pyarrow_dataset())
    except TableNotFoundError:
        return
    begin = max(begin, await asyncio.to_thread(_first, dataset, source.partition))
    while begin < end:
        stop = min(begin + AT_ONCE, end)
        records = await asyncio.to_thread(_read, dataset, source, begin, stop)
        for _, run in groupby(enumerate(records), lambda placed: placed[1].offset - placed[0]):
            yield [record for _, record in run]
        begin = stop


def _first(dataset: ds.Dataset, partition: int) -> int:
    """The first offset that is kept; files are pruned by what they say of themselves."""
    offsets = dataset.to_table(["offset"], filter=ds.field("partition") == partition)["offset"]
    first: int | None = pc.min(offsets).as_py()
    return 0 if first is None else first


def _read(
    dataset: ds.Dataset, source: TopicPartition, begin: int, end: int
) -> list[ConsumerRecord]:
    offset = ds.field("offset")
    found = dataset.to_table(
        ["offset", "appended_at", "value"],
        filter=(ds.field("partition") == source.partition) & (offset >= begin) & (offset < end),
    ).sort_by("offset")
    return [
        ConsumerRecord(
            topic=source.topic,
            partition=source.partition,
            offset=row["offset"],
            timestamp=row["appended_at"],
            timestamp_type=0,
            key=None,
            value=row["value"],
            checksum=None,
            serialized_key_size=-1,
            serialized_value_size=len(row["value"]),
            headers=(),
        )
        for row in found.to_pylist()
    ]
