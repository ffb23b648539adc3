"""A Parquet file as the stream it once was: events at their time, labels when they became known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from homeostat.common.errors import InvalidInput, unknown_names
from homeostat.common.events import REPLAY_STAMP
from homeostat.common.pipeline import FieldType, Pipeline

I64 = np.ndarray[tuple[int], np.dtype[np.int64]]

_TYPES = {
    FieldType.STRING: pa.string(),
    FieldType.CATEGORY: pa.string(),
    FieldType.FLOAT: pa.float64(),
    FieldType.DECIMAL: pa.float64(),
    FieldType.INTEGER: pa.int64(),
    FieldType.BOOLEAN: pa.bool_(),
}


@dataclass(frozen=True)
class Slice:
    """What became known in ``[start, end)`` (epoch ms), each list in its order."""

    start: int
    end: int
    events: list[dict[str, Any]]
    labels: list[dict[str, Any]]


class FileSource:
    """The rows of one file, mapped by a pipeline's ``source`` and ``fields``."""

    def __init__(self, path: Path, pipeline: Pipeline) -> None:
        """Read and order the file.

        Raises:
            InvalidInput: the file lacks a column that the pipeline needs, or a type does not fit.
        """
        self._pipeline = pipeline
        table = _read(path)
        _require(table, pipeline, path)
        table = table.append_column("$time", pa.array(_millis(table, pipeline.source.time)))
        table = table.append_column("$row", pa.array(np.arange(table.num_rows)))
        keys = ["$time", *pipeline.source.order, "$row"]
        table = table.sort_by([(key, "ascending") for key in keys])
        self.times: I64 = table.column("$time").to_numpy()
        self._events = _events(table, pipeline)
        self._labels, self._label_times = _labels(table, pipeline, self._events.column("$id"))

    def __len__(self) -> int:
        return len(self.times)

    def truth(self) -> dict[str, float]:
        """Every label that the file tells, whenever it became known, by event id."""
        ids = self._labels.column("id").to_pylist()
        return dict(zip(ids, self._labels.column("label").to_pylist(), strict=True))

    def slices(
        self, length: int, *, start: int | None = None, end: int | None = None
    ) -> Iterator[Slice]:
        """Consecutive slices of ``length`` ms; labels go on coming after the last event.

        ``start`` and ``end`` bound the events by time; a label of an event before ``start`` is left
        out.
        """
        first_row = 0 if start is None else int(np.searchsorted(self.times, start))
        last_row = len(self) if end is None else int(np.searchsorted(self.times, end))
        if first_row >= last_row:
            return
        last_time = int(self.times[last_row - 1])
        cursor = int(self.times[first_row]) // length * length
        stop = last_time + 1 if end is None else end
        label_low = int(np.searchsorted(self._label_times, cursor))
        row = first_row
        while cursor < stop:
            following = cursor + length
            row_end = min(int(np.searchsorted(self.times, following)), last_row)
            label_end = int(np.searchsorted(self._label_times, following))
            yield Slice(
                cursor,
                following,
                self._event_rows(row, row_end),
                self._labels.slice(label_low, label_end - label_low).to_pylist(),
            )
            cursor, row, label_low = following, row_end, label_end

    def _event_rows(self, low: int, high: int) -> list[dict[str, Any]]:
        columns = self._events.slice(low, high - low).drop_columns(["$id"])
        rows: list[dict[str, Any]] = columns.to_pylist()
        optional = {name for name, spec in self._pipeline.fields.items() if spec.optional}
        if not optional:
            return rows
        return [
            {
                name: value
                for name, value in row.items()
                if value is not None or name not in optional
            }
            for row in rows
        ]


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except FileNotFoundError:
        raise InvalidInput(f"there is no file {path}") from None
    except pa.ArrowInvalid as error:
        raise InvalidInput(f"{path} is not a Parquet file: {error}") from error


def _require(table: pa.Table, pipeline: Pipeline, path: Path) -> None:
    source = pipeline.source
    needed = [source.time, source.label.field, *source.order]
    needed += [name for name in (source.label.time,) if name]
    needed += [name for name, spec in pipeline.fields.items() if not spec.optional]
    missing = [name for name in dict.fromkeys(needed) if name not in table.column_names]
    if missing:
        violations = unknown_names(missing, table.column_names, what="no such column")
        raise InvalidInput(f"{path.name} does not fit {pipeline.name!r}", violations=violations)


def _millis(table: pa.Table, name: str) -> I64:
    column = table.column(name)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        millis = column.cast(pa.timestamp("ms")).cast(pa.int64())
    elif pa.types.is_integer(column.type):
        millis = column.cast(pa.int64())
    else:
        raise InvalidInput(f"the column {name!r} is a {column.type}, not a time")
    if pc.any(pc.is_null(millis)).as_py():
        raise InvalidInput(f"the column {name!r} has rows without a time")
    return np.asarray(millis.to_numpy())


def _events(table: pa.Table, pipeline: Pipeline) -> pa.Table:
    """The columns of the events as they are sent, plus ``$id``."""
    source = pipeline.source
    columns: dict[str, Any] = {source.time: table.column("$time")}
    for name, spec in pipeline.fields.items():
        if name in table.column_names:
            columns[name] = _cast(table.column(name), name, spec.type)
    if source.id not in columns:
        columns[source.id] = table.column("$row").cast(pa.string())
    columns[REPLAY_STAMP] = table.column("$time")
    columns["$id"] = columns[source.id]
    return pa.table(columns)


def _cast(column: pa.ChunkedArray, name: str, kind: FieldType) -> pa.ChunkedArray:
    try:
        return column.cast(_TYPES[kind])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InvalidInput(f"the column {name!r} cannot be read as {kind}: {error}") from error


def _labels(table: pa.Table, pipeline: Pipeline, ids: pa.ChunkedArray) -> tuple[pa.Table, I64]:
    """The labels in the order in which they became known; a null never does."""
    label = pipeline.source.label
    if label.time is None:
        known = table.column("$time").to_numpy() + round(label.delay.total_seconds() * 1000)
    else:
        arrives = pc.is_valid(table.column(label.time))
        table, ids = table.filter(arrives), ids.filter(arrives)
        known = _millis(table, label.time)
    labels = pa.table(
        {
            "id": ids,
            "label": table.column(label.field).cast(pa.float64()),
            REPLAY_STAMP: pa.array(known),
        }
    )
    labels = labels.filter(pc.is_valid(labels.column("label"))).sort_by(REPLAY_STAMP)
    return labels, labels.column(REPLAY_STAMP).to_numpy()
