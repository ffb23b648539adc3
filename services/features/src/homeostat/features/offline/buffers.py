"""What one table's writer has read and not yet committed."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
from aiokafka import ConsumerRecord

from homeostat.features.offline import metrics
from homeostat.features.offline.rows import Refusal, Shape
from homeostat.features.offline.tables import OfflineTable

logger = logging.getLogger(__name__)

FREE_REFUSALS = 10  # a share of few records says little
MEMORY_RECORDS = 20_000  # so far back the share of refused records looks


class Unreadable(Exception):
    """Too many records of our own topic are not what it should hold: the code is wrong."""


class Buffer:
    """Rows of one table and the offsets they came from. ``take`` and ``commit`` work in threads."""

    def __init__(
        self,
        name: str,
        table: OfflineTable,
        shape: Shape,
        *,
        pipeline: str,
        unreadable_share: float,
    ) -> None:
        self.name = name
        self.table = table
        self.byte_count = 0
        self._shape = shape
        self._parts: list[pa.Table] = []
        self._since: float | None = None
        self._recorded: dict[int, int | None] = {}
        self._next: dict[int, int] = {}
        self._unreadable_share = unreadable_share
        self._seen = self._refused = 0
        labels = (pipeline, name)
        self._rows = metrics.ROWS.labels(*labels)
        self._expired = metrics.EXPIRED.labels(*labels)
        self._refusals = metrics.REFUSED.labels(*labels)
        self._seconds = metrics.COMMIT_SECONDS.labels(*labels)
        self._bytes = metrics.BUFFERED_BYTES.labels(*labels)

    @property
    def positions(self) -> dict[int, int]:
        """The next offset of each owned partition, taken in."""
        return dict(self._next)

    @property
    def committed(self) -> dict[int, int]:
        """The next offset of each owned partition, as the table has it."""
        return {partition: offset or 0 for partition, offset in self._recorded.items()}

    @property
    def age_seconds(self) -> float:
        """How long the oldest row has waited."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    def own(self, recorded: Mapping[int, int | None], earliest: Mapping[int, int]) -> None:
        """Begin anew where the table stands; what was not committed will be read again.

        Records between there and the topic's ``earliest`` are lost to this store, and counted.
        """
        self._clear()
        self._recorded = dict(recorded)
        self._next = {}
        for partition, first in earliest.items():
            position = recorded[partition]
            if position is not None and position < first:
                self._expired.inc(first - position)
                logger.error(
                    "records expired before they were written",
                    extra={
                        "topic": self.table.topic,
                        "partition": partition,
                        "from": position,
                        "to": first,
                    },
                )
            self._next[partition] = max(position or 0, first)

    def advance(self, partition: int, position: int) -> None:
        """Pass offsets that hold no records."""
        self._next[partition] = max(self._next[partition], position)

    def take(self, batches: Iterable[Sequence[ConsumerRecord]]) -> None:
        """Shape records, each of an owned partition and not seen before.

        Raises:
            Unreadable: above the bearable rate.
        """
        records = [
            record
            for batch in batches
            for record in batch
            if record.partition in self._next and record.offset >= self._next[record.partition]
        ]
        if not records:
            return
        shaped = self._shape(records)
        self._refuse(shaped.refused, len(records))
        if shaped.rows.num_rows:
            rows = shaped.rows.combine_chunks()
            self._parts.append(rows)
            self.byte_count += rows.nbytes
        self._since = self._since or time.monotonic()
        for record in records:
            self._next[record.partition] = record.offset + 1
        self._bytes.set(self.byte_count)

    def _refuse(self, refused: Sequence[Refusal], seen: int) -> None:
        self._seen += seen
        self._refused += len(refused)
        self._refusals.inc(len(refused))
        for refusal in refused[:FREE_REFUSALS]:
            logger.error(
                "record has no place in the offline store",
                extra={"topic": self.table.topic, **refusal._asdict()},
            )
        if refused and self._refused > FREE_REFUSALS + self._seen * self._unreadable_share:
            raise Unreadable(
                f"{self._refused} of {self._seen} records of {self.table.topic} are unreadable; "
                f"offset {refused[-1].offset} of partition {refused[-1].partition}: "
                f"{refused[-1].detail}"
            )
        if self._seen > MEMORY_RECORDS:
            self._seen //= 2
            self._refused //= 2

    def commit(self) -> bool:
        """Write rows and positions in one commit; whether there was anything to write."""
        committed = self.committed
        moved = {
            partition: offset
            for partition, offset in self._next.items()
            if offset != committed[partition]
        }
        if not moved:
            return False
        started = time.monotonic()
        rows = self._joined()
        self.table.append(rows, start=self._recorded, end=moved)
        self._recorded.update(moved)
        self._clear()
        self._rows.inc(rows.num_rows)
        self._seconds.observe(time.monotonic() - started)
        return True

    def _joined(self) -> pa.Table:
        if not self._parts:
            return self._shape([]).rows
        return pa.concat_tables(self._parts, promote_options="default")

    def _clear(self) -> None:
        self._parts = []
        self.byte_count = 0
        self._since = None
        self._bytes.set(0)
