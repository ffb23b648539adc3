"""Which partitions this worker owns: taken over and let go of whole, with every rebalance."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Set
from typing import Any

from aiokafka import TopicPartition
from faust.types import TP

from homeostat.features.batches import RecordBatch
from homeostat.features.partitions import InputPartition

logger = logging.getLogger(__name__)

OPEN_AT_ONCE = 8  # restores that run side by side


class Assignment:
    """The partitions that this worker owns now (see ``batches.Positions``)."""

    def __init__(
        self,
        make: Callable[[TopicPartition], InputPartition[Any]],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._make = make
        self._fail = fail
        self._owned: dict[TopicPartition, InputPartition[Any]] = {}
        self.restore_seconds = 0.0

    @property
    def partitions(self) -> list[InputPartition[Any]]:
        return list(self._owned.values())

    async def acquire(self, partitions: Set[TP]) -> Mapping[TP, int]:
        """Restore the partitions; the next offset of each."""
        begun = time.monotonic()
        await self.abandon()
        places = asyncio.Semaphore(OPEN_AT_ONCE)

        async def take_over(tp: TP) -> int:
            partition = self._make(TopicPartition(tp.topic, tp.partition))
            self._owned[partition.source] = partition
            async with places:
                return await partition.open()

        wanted = list(partitions)
        positions = await asyncio.gather(*map(take_over, wanted))
        self.restore_seconds = time.monotonic() - begun
        logger.info(
            "partitions taken over",
            extra={"count": len(wanted), "seconds": round(self.restore_seconds, 3)},
        )
        return dict(zip(wanted, positions, strict=True))

    async def release(self, *_: object) -> None:
        """Settle and commit everything, and own nothing."""
        owned, self._owned = self._owned, {}
        await asyncio.gather(*(partition.close() for partition in owned.values()))

    async def abandon(self) -> None:
        """Own nothing; what is not committed is done again by whoever takes over."""
        owned, self._owned = self._owned, {}
        await asyncio.gather(*(partition.abandon() for partition in owned.values()))

    async def process(self, records: RecordBatch) -> None:
        """Hand a fetch to its partition; one that has just gone elsewhere is read there again."""
        first = records[0]
        partition = self._owned.get(TopicPartition(first.topic, first.partition))
        if partition is None:
            return
        try:
            await partition.process(records)
        except Exception as error:
            self._fail(error)  # Faust would restart the agent behind the lost batch
            raise
