"""Records of a topic as rows of its table. Pure: records in, Arrow out.

Every row says which record it comes from. A record that is not what its topic holds is refused, and
the caller decides how many of those it bears.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from aiokafka import ConsumerRecord

from homeostat.common import kafka
from homeostat.common.errors import InvalidEvent, Reason
from homeostat.common.pipeline import Pipeline
from homeostat.common.schemas.arrow import decode_batch
from homeostat.common.schemas.labels import Outcome
from homeostat.common.schemas.ledger import LedgerBatch, Prediction
from homeostat.common.schemas.vectors import VectorBatch

_decode_outcome = msgspec.json.Decoder(Outcome).decode
_decode_prediction = msgspec.json.Decoder(Prediction).decode

_METADATA = ("definition_hash", "partition", "is_replayed")


class Refusal(NamedTuple):
    """A record that has no place in the table."""

    partition: int
    offset: int
    detail: str


class Shaped(NamedTuple):
    rows: pa.Table
    refused: Sequence[Refusal]


Shape = Callable[[Sequence[ConsumerRecord]], Shaped]

_EVENTS = pa.schema(
    {
        "value": pa.string(),
        "key": pa.string(),
        "partition": pa.int32(),
        "offset": pa.int64(),
        "appended_at": pa.int64(),
        "available_at": pa.int64(),
    }
)
_LOG = pa.schema(
    {
        "value": pa.binary(),
        "partition": pa.int32(),
        "offset": pa.int64(),
        "appended_at": pa.int64(),
    }
)
_OUTCOMES = pa.schema(
    {
        "id": pa.string(),
        "label": pa.float64(),
        "event_time": pa.int64(),
        "available_at": pa.int64(),
        "entities": pa.map_(pa.string(), pa.string()),
        "version": pa.int32(),
        "partition": pa.int32(),
        "offset": pa.int64(),
    }
)
_ORIGIN = [pa.field("partition", pa.int32()), pa.field("offset", pa.int64())]


def events(records: Sequence[ConsumerRecord]) -> Shaped:
    """Raw events, as they lie on the topic; none is refused.

    ``value`` is null where the bytes are not UTF-8: those cannot be an event, and the dead-letter
    topic keeps them.
    """
    columns = [
        _text([record.value for record in records]),
        _text([record.key for record in records]),
        *_origins(records),
        pa.array([record.timestamp for record in records], pa.int64()),
        pa.array([kafka.available_at(record.headers) for record in records], pa.int64()),
    ]
    return Shaped(pa.Table.from_arrays(columns, schema=_EVENTS), ())


def log(records: Sequence[ConsumerRecord]) -> Shaped:
    """The log of accepted events and joined labels, record by record; none is refused."""
    columns = [
        pa.array([record.value or b"" for record in records], pa.binary()),
        *_origins(records),
        pa.array([record.timestamp for record in records], pa.int64()),
    ]
    return Shaped(pa.Table.from_arrays(columns, schema=_LOG), ())


def vectors(records: Sequence[ConsumerRecord]) -> Shaped:
    """Vectors of any definition: a column that a definition lacks is null."""
    tables: list[pa.Table] = []
    refused: list[Refusal] = []
    for record in records:
        try:
            batch, metadata = decode_batch(record.value or b"")
            tables.append(_vector_rows(batch, metadata))
        except InvalidEvent as error:
            refused.append(_refusal(record, error))
    rows = pa.concat_tables(tables, promote_options="default") if tables else _VECTORS.empty_table()
    return Shaped(rows, refused)


def outcomes(records: Sequence[ConsumerRecord]) -> Shaped:
    """Outcomes with every correction, which ``version`` counts."""
    kept: list[ConsumerRecord] = []
    found: list[Outcome] = []
    refused: list[Refusal] = []
    for record in records:
        try:
            found.append(_decode_outcome(record.value or b""))
            kept.append(record)
        except msgspec.DecodeError as error:
            refused.append(_refusal(record, error))
    fields = _OUTCOMES.names[: -len(_ORIGIN)]
    values = {name: [getattr(outcome, name) for outcome in found] for name in fields}
    values["entities"] = [list(outcome.entities.items()) for outcome in found]
    columns = [pa.array(values[name], _OUTCOMES.field(name).type) for name in fields]
    rows = pa.Table.from_arrays([*columns, *_origins(kept)], schema=_OUTCOMES)
    return Shaped(rows, refused)


def predictions(records: Sequence[ConsumerRecord]) -> Shaped:
    """Ledger rows of both paths, in the order of the topic."""
    parts: list[pa.RecordBatch] = []
    origins: list[tuple[int, int, int]] = []  # partition, offset, rows
    refused: list[Refusal] = []
    for batch, of in _ledger_batches(records, refused):
        parts.append(batch)
        rows = 1 if len(of) > 1 else batch.num_rows
        origins += [(record.partition, record.offset, rows) for record in of]
    rows = pa.Table.from_batches(parts, _LEDGER)
    counts = [count for *_, count in origins]
    for index, field in enumerate(_ORIGIN):
        values = np.repeat(np.array([origin[index] for origin in origins], np.int64), counts)
        rows = rows.append_column(field, pa.array(values).cast(field.type))
    return Shaped(rows.cast(_signed(rows.schema)), refused)


def _ledger_batches(
    records: Sequence[ConsumerRecord], refused: list[Refusal]
) -> Iterator[tuple[pa.RecordBatch, list[ConsumerRecord]]]:
    """Batches with the records that they come from; JSON rows that follow one another share one."""
    row_records: list[ConsumerRecord] = []
    rows: list[Prediction] = []
    for record in records:
        value = record.value or b""
        try:
            if value[:1] == b"{":
                rows.append(_decode_prediction(value))
                row_records.append(record)
                continue
            batch = _of_ledger(LedgerBatch.decode(value).batch)
        except (InvalidEvent, msgspec.DecodeError) as error:
            refused.append(_refusal(record, error))
            continue
        if rows:
            yield LedgerBatch.of(rows).batch, row_records
            row_records, rows = [], []
        yield batch, [record]
    if rows:
        yield LedgerBatch.of(rows).batch, row_records


def _of_ledger(batch: pa.RecordBatch) -> pa.RecordBatch:
    if not batch.schema.equals(_LEDGER):
        raise InvalidEvent("an Arrow batch without the ledger's columns", reason=Reason.UNPARSABLE)
    return batch.replace_schema_metadata(None)


def empty_vectors(pipeline: Pipeline) -> pa.Schema:
    """The columns that a pipeline's vectors have now; later definitions add theirs."""
    nothing = np.empty(0, np.int64)
    shape = (0, len(pipeline.features))
    batch = VectorBatch(
        definition_hash="",
        features=tuple(pipeline.features),
        ids=[],
        units=[],
        times=nothing,
        intakes=nothing,
        values=np.empty(shape),
        statuses=np.empty(shape, np.uint8),
        is_scored=np.empty(0, np.bool_),
        entities={name: [] for name in pipeline.entities},
        partition=0,
        offsets=nothing,
        traceparents=[],
    ).table()
    metadata = {key.decode(): value.decode() for key, value in batch.schema.metadata.items()}
    return _vector_rows(batch, metadata).schema


def empty_events(_pipeline: Pipeline) -> pa.Schema:
    return _EVENTS


def empty_log(_pipeline: Pipeline) -> pa.Schema:
    return _LOG


def empty_outcomes(_pipeline: Pipeline) -> pa.Schema:
    return _OUTCOMES


def empty_predictions(_pipeline: Pipeline) -> pa.Schema:
    return predictions([]).rows.schema


def _vector_rows(batch: pa.RecordBatch, metadata: dict[str, str]) -> pa.Table:
    missing = [name for name in _METADATA if name not in metadata]
    missing += [
        name for name in _VECTORS.names[: -len(_METADATA)] if name not in batch.schema.names
    ]
    if missing:
        raise InvalidEvent(f"a vector batch without {', '.join(missing)}", reason=Reason.UNPARSABLE)
    count = batch.num_rows
    table = pa.Table.from_batches([batch.replace_schema_metadata(None)])
    table = table.cast(_signed(table.schema))
    added = (
        pa.repeat(pa.scalar(metadata["definition_hash"]), count),
        pa.repeat(pa.scalar(int(metadata["partition"]), pa.int32()), count),
        pa.repeat(pa.scalar(metadata["is_replayed"] == "1"), count),
    )
    for name, column in zip(_VECTORS.names[-len(added) :], added, strict=True):
        table = table.append_column(name, column)
    return table


_VECTORS = pa.schema(
    {
        "id": pa.string(),
        "unit": pa.string(),
        "event_time": pa.int64(),
        "intake": pa.int64(),
        "is_scored": pa.bool_(),
        "offset": pa.int64(),
        "traceparent": pa.string(),
        "definition_hash": pa.string(),
        "source_partition": pa.int32(),
        "is_replayed": pa.bool_(),
    }
)
_LEDGER = LedgerBatch.of([]).batch.schema


def _signed(schema: pa.Schema) -> pa.Schema:
    """Delta has no unsigned integers; statuses are small."""
    for index, field in enumerate(schema):
        if field.type == pa.uint8():
            schema = schema.set(index, field.with_type(pa.int8()))
        elif field.type == pa.list_(pa.uint8()):
            schema = schema.set(index, field.with_type(pa.list_(pa.int8())))
    return schema


def _origins(records: Sequence[ConsumerRecord]) -> list[pa.Array]:
    return [
        pa.array([record.partition for record in records], pa.int32()),
        pa.array([record.offset for record in records], pa.int64()),
    ]


def _text(values: list[bytes | None]) -> pa.Array:
    try:
        return pa.array(values, pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([_text_or_none(value) for value in values], pa.string())


def _text_or_none(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _refusal(record: ConsumerRecord, error: Exception) -> Refusal:
    return Refusal(record.partition, record.offset, str(error))
