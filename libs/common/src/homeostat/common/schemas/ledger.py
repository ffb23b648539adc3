"""The ledger: one row for every score, from either path.

The request path writes JSON rows, the stream path Arrow batches; ``LedgerBatch.decode`` reads both,
so a consumer sees columns whatever the path was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec
import numpy as np
import pyarrow as pa

from homeostat.common.assignment import Variant
from homeostat.common.errors import InvalidEvent, Reason
from homeostat.common.schemas.arrow import decode_batch, encode_batch


class Path(StrEnum):
    REQUEST = "request"
    STREAM = "stream"


class Prediction(msgspec.Struct, frozen=True):
    """One score. ``score`` is null when the model failed, and ``error`` says how.

    ``is_primary`` marks *the* prediction of an event (the pipeline's scoring path, not a shadow);
    performance is computed from those alone. ``vector`` is what the model saw, in the order of the
    version's features; null stands for NaN. ``offsets`` is for the skew audit, in JSON rows alone:
    the next offset of each entity's log when the online row was read.
    """

    prediction_id: str
    event_id: str
    unit: str
    event_time: int  # epoch ms
    at: int  # epoch ms, pipeline time of scoring
    path: Path
    is_primary: bool
    variant: Variant
    version: int
    rollout: str
    propensity: float
    score: float | None
    decision: bool | None
    vector: tuple[float | None, ...]
    statuses: tuple[int, ...]
    definition_hash: str
    latency_us: int = 0
    error: str | None = None
    traceparent: str | None = None
    entities: dict[str, str | None] = {}
    offsets: dict[str, int] = {}


_decode_row = msgspec.json.Decoder(Prediction).decode
_encode_row = msgspec.json.Encoder().encode

_SCHEMA = pa.schema(
    {
        "prediction_id": pa.string(),
        "event_id": pa.string(),
        "unit": pa.string(),
        "event_time": pa.int64(),
        "at": pa.int64(),
        "path": pa.string(),
        "is_primary": pa.bool_(),
        "variant": pa.string(),
        "version": pa.int32(),
        "rollout": pa.string(),
        "propensity": pa.float64(),
        "score": pa.float64(),
        "decision": pa.bool_(),
        "vector": pa.list_(pa.float64()),
        "statuses": pa.list_(pa.uint8()),
        "definition_hash": pa.string(),
        "latency_us": pa.int64(),
        "error": pa.string(),
        "traceparent": pa.string(),
        "entities": pa.map_(pa.string(), pa.string()),
    }
)


@dataclass(frozen=True)
class LedgerBatch:
    """Ledger rows as an Arrow batch with the columns of ``Prediction``."""

    batch: pa.RecordBatch

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    @classmethod
    def of(cls, rows: Sequence[Prediction]) -> LedgerBatch:
        names = _SCHEMA.names
        columns = {name: [getattr(row, name) for row in rows] for name in names}
        columns["path"] = [row.path.value for row in rows]
        columns["variant"] = [row.variant.value for row in rows]
        columns["entities"] = [list(row.entities.items()) for row in rows]
        arrays = [pa.array(columns[name], _SCHEMA.field(name).type) for name in names]
        return cls(pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA))

    @classmethod
    def of_columns(cls, columns: dict[str, pa.Array]) -> LedgerBatch:
        """Build from ready columns (the stream path), which must be those of ``Prediction``."""
        return cls(
            pa.RecordBatch.from_arrays([columns[name] for name in _SCHEMA.names], schema=_SCHEMA)
        )

    @classmethod
    def decode(cls, value: bytes) -> LedgerBatch:
        """Read a record of the ledger topic, JSON row or Arrow batch.

        Raises:
            InvalidEvent: the record is neither.
        """
        if value[:1] == b"{":
            try:
                return cls.of([_decode_row(value)])
            except msgspec.DecodeError as error:
                raise InvalidEvent(
                    f"not a ledger row: {error}", reason=Reason.UNPARSABLE
                ) from error
        batch, _ = decode_batch(value)
        return cls(batch)

    @classmethod
    def concat(cls, parts: Sequence[LedgerBatch]) -> LedgerBatch:
        table = pa.Table.from_batches([part.batch for part in parts], _SCHEMA).combine_chunks()
        batches = table.to_batches()
        return cls(batches[0] if batches else pa.RecordBatch.from_pylist([], _SCHEMA))

    def encode(self) -> Iterator[bytes]:
        """Arrow messages, each below the size that a topic accepts."""
        return encode_batch(self.batch)

    def strings(self, name: str) -> list[str]:
        values: list[str] = self.batch.column(name).to_pylist()
        return values

    def numbers(self, name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """A numeric column as float64; null is NaN."""
        column = self.batch.column(name).cast(pa.float64())
        return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)

    def vectors(self) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """The vectors as one ``[n, f]`` array; all rows must come from one definition."""
        column = self.batch.column("vector")
        flat = np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float64)
        return flat.reshape(len(self), -1) if len(self) else flat.reshape(0, 0)


def encode_row(row: Prediction) -> bytes:
    return _encode_row(row)
