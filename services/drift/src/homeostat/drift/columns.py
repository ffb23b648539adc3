"""What arrives, as columns: primary predictions and outcomes. Pure: bytes in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from homeostat.common.errors import InvalidEvent, Reason
from homeostat.common.event_columns import event_hash
from homeostat.common.schemas.labels import Outcome
from homeostat.common.schemas.ledger import LedgerBatch

Array = np.ndarray[tuple[int], np.dtype[Any]]
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]

_decode_outcome = msgspec.json.Decoder(Outcome).decode


@dataclass(frozen=True)
class Inputs:
    """What one version saw and said: ``vectors[n, f]``, in the order of the version's features."""

    rows: Array  # places in the batch
    vectors: Matrix


@dataclass(frozen=True)
class Predictions:
    """Primary predictions. ``key`` identifies the event; where ``is_joinable`` is false there was
    none to join."""

    key: Array  # uint64
    is_joinable: Array
    event_time: Array  # epoch ms
    at: Array  # epoch ms
    version: Array
    score: Array  # NaN: the model failed
    decision: Array  # int8, -1: none
    inputs: dict[int, Inputs]  # by version

    def __len__(self) -> int:
        return len(self.key)


@dataclass(frozen=True)
class Outcomes:
    """Labels that found their event."""

    key: Array
    event_time: Array
    label: Array
    correction: Array  # 1, 2, ... counts the labels of one event

    def __len__(self) -> int:
        return len(self.key)


def read_predictions(values: Sequence[bytes]) -> tuple[Predictions, list[InvalidEvent]]:
    """Columns of every primary row of some ledger records, and what could not be read."""
    parts, refused = [], []
    for value in values:
        try:
            parts.append(LedgerBatch.decode(value).batch)
        except InvalidEvent as error:
            refused.append(error)
    table = pa.Table.from_batches(parts, LedgerBatch.of([]).batch.schema)
    table = table.filter(table.column("is_primary")).combine_chunks()
    return _predictions(table), refused


def _predictions(table: pa.Table) -> Predictions:
    events = table.column("event_id").to_pylist()
    names = [
        event or prediction
        for event, prediction in zip(events, table.column("prediction_id").to_pylist(), strict=True)
    ]
    version = _numbers(table, "version", np.int32)
    return Predictions(
        key=_keys(names),
        is_joinable=np.array([bool(event) for event in events], bool),
        event_time=_numbers(table, "event_time", np.int64),
        at=_numbers(table, "at", np.int64),
        version=version,
        score=_numbers(table, "score", np.float64),
        decision=table.column("decision").cast(pa.int8()).fill_null(-1).to_numpy(),
        inputs={int(each): _inputs(table, version, each) for each in np.unique(version)},
    )


def _inputs(table: pa.Table, version: Array, wanted: int) -> Inputs:
    """Rows of one version whose vectors have one length, the most frequent: others cannot be its
    features."""
    rows = np.flatnonzero(version == wanted)
    vectors = table.column("vector").take(pa.array(rows)).combine_chunks()
    if isinstance(vectors, pa.ChunkedArray):
        vectors = pa.concat_arrays(vectors.chunks) if vectors.num_chunks else vectors.chunk(0)
    lengths = np.asarray(vectors.value_lengths().fill_null(0))
    length = int(np.bincount(lengths).argmax()) if len(lengths) else 0
    fitting = lengths == length
    flat = vectors.filter(pa.array(fitting)).flatten().to_numpy(zero_copy_only=False)
    return Inputs(rows[fitting], np.asarray(flat, np.float64).reshape(-1, length))


def _numbers(table: pa.Table, name: str, kind: type[np.number[Any]]) -> Array:
    column = table.column(name).cast(pa.from_numpy_dtype(kind))
    return np.asarray(column.to_numpy(), kind)


def _keys(names: Sequence[str]) -> Array:
    return np.fromiter((event_hash(name) for name in names), np.uint64, len(names))


def read_outcomes(values: Sequence[bytes]) -> tuple[list[Outcome], list[InvalidEvent]]:
    """The outcomes of some records, and what could not be read."""
    rows, refused = [], []
    for value in values:
        try:
            rows.append(_decode_outcome(value))
        except msgspec.DecodeError as error:
            refused.append(InvalidEvent(f"not an outcome: {error}", reason=Reason.UNPARSABLE))
    return rows, refused


def outcomes_of(rows: Sequence[Outcome]) -> Outcomes:
    return Outcomes(
        key=_keys([row.id for row in rows]),
        event_time=np.array([row.event_time for row in rows], np.int64),
        label=np.array([row.label for row in rows], np.float64),
        correction=np.array([row.version for row in rows], np.int64),
    )
