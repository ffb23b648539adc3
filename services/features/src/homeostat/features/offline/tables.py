"""One Delta table and the positions that it holds: rows and offsets move in one commit.

A position is an *application transaction* of the table, named after topic and partition. Delta
refuses a commit when somebody else has moved one of its application transactions meanwhile, so a
writer that lost a partition without noticing cannot add its rows a second time.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

logger = logging.getLogger(__name__)

TARGET_FILE_BYTES = 128 * 1024 * 1024
CHECKPOINT_COMMITS = 20
HOUR = timedelta(hours=1)

_COMPRESSED = WriterProperties(compression="ZSTD", compression_level=1)


class Displaced(Exception):
    """Another writer has moved a partition that this one believed to own."""


class OfflineTable:
    """The table of one topic. Not safe for threads: one call at a time."""

    def __init__(self, path: Path, topic: str, table: DeltaTable) -> None:
        self.path = path
        self.topic = topic
        self._table = table
        self._note()

    @classmethod
    def open(
        cls, path: Path, topic: str, *, schema: pa.Schema, retention: timedelta
    ) -> OfflineTable:
        """The table as it is now, made with ``schema`` if there is none."""
        try:
            return cls(path, topic, DeltaTable(path))
        except TableNotFoundError:
            path.mkdir(parents=True, exist_ok=True)
        kept = f"interval {max(1, retention // HOUR)} hours"
        configuration = {
            "delta.logRetentionDuration": kept,
            "delta.deletedFileRetentionDuration": kept,
            "delta.checkpointInterval": str(CHECKPOINT_COMMITS),
        }
        try:
            table = DeltaTable.create(path, schema, mode="ignore", configuration=configuration)
        except (CommitFailedError, DeltaError) as error:
            if not DeltaTable.is_deltatable(str(path)):
                raise
            logger.info("offline table made by another writer", extra={"error": str(error)})
            table = DeltaTable(path)
        return cls(path, topic, table)

    def refresh(self) -> None:
        """Take in what other writers have committed."""
        self._table.update_incremental()
        self._note()

    def _note(self) -> None:
        self.version = int(self._table.version())
        self.row_count = int(self._table.count())

    def position(self, partition: int) -> int | None:
        """The next offset of a partition as committed; ``None`` for one never written."""
        return self._table.transaction_version(self._application(partition))

    def append(
        self, rows: pa.Table, *, start: Mapping[int, int | None], end: Mapping[int, int]
    ) -> None:
        """Commit rows together with the positions behind them.

        ``start`` is what ``position`` said when the caller began to read each partition of ``end``.

        Raises:
            Displaced: a partition is no longer at its ``start``; nothing is written.
        """
        for partition in end:
            recorded = self.position(partition)
            if recorded != start[partition]:
                raise Displaced(
                    f"{self._application(partition)} is at {recorded}, expected {start[partition]}"
                )
        transactions = [
            Transaction(app_id=self._application(partition), version=offset)
            for partition, offset in sorted(end.items())
        ]
        try:
            write_deltalake(
                self._table,
                rows,
                mode="append",
                schema_mode="merge",
                writer_properties=_COMPRESSED,
                commit_properties=CommitProperties(app_transactions=transactions),
            )
        except CommitFailedError as error:
            raise Displaced(f"a concurrent commit on {self.path.name}: {error}") from error
        self._note()

    def _application(self, partition: int) -> str:
        return f"{self.topic}-{partition}"


def compact(path: Path, *, retention: timedelta) -> Sequence[str]:
    """Merge small files, and delete those that no version within ``retention`` names.

    Runs beside appends: it changes no row, and what a torn commit left behind goes with the rest.
    """
    table = DeltaTable(path)
    table.optimize.compact(target_size=TARGET_FILE_BYTES, writer_properties=_COMPRESSED)
    return table.vacuum(
        retention_hours=max(1, retention // HOUR),
        dry_run=False,
        enforce_retention_duration=False,
        full=True,
    )
