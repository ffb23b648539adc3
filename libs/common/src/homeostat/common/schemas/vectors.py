"""Feature vectors as the stream computed them: one Arrow message per input fetch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from homeostat.common.schemas.arrow import decode_batch, encode_batch

F64 = np.ndarray[tuple[int, int], np.dtype[np.float64]]
I64 = np.ndarray[tuple[int], np.dtype[np.int64]]
U8 = np.ndarray[tuple[int, int], np.dtype[np.uint8]]


@dataclass(frozen=True)
class VectorBatch:
    """``n`` vectors of ``f`` features, in the order of their arrival at the last entity.

    ``values[n, f]`` is the model's encoding (NaN stands for null and missing), ``statuses[n, f]``
    tells the two apart (``windows.Status``). ``partition`` and ``offset`` name each row's immediate
    input record.
    """

    definition_hash: str
    features: tuple[str, ...]
    ids: Sequence[str]
    units: Sequence[str]
    times: I64  # event time, epoch ms
    intakes: I64  # epoch ms, the pipeline's clock
    values: F64
    statuses: U8
    is_scored: np.ndarray[tuple[int], np.dtype[np.bool_]]  # fresh enough for the stream path
    entities: dict[str, Sequence[str | None]]
    partition: int
    offsets: I64
    traceparents: Sequence[str | None]
    is_replayed: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> VectorBatch:
        """The chosen rows, in the order given."""
        picked = rows.tolist()
        return VectorBatch(
            self.definition_hash,
            self.features,
            [self.ids[row] for row in picked],
            [self.units[row] for row in picked],
            self.times[rows],
            self.intakes[rows],
            self.values[rows],
            self.statuses[rows],
            self.is_scored[rows],
            {name: [keys[row] for row in picked] for name, keys in self.entities.items()},
            self.partition,
            self.offsets[rows],
            [self.traceparents[row] for row in picked],
            self.is_replayed,
        )

    def table(self) -> pa.RecordBatch:
        columns: dict[str, pa.Array] = {
            "id": pa.array(self.ids, pa.string()),
            "unit": pa.array(self.units, pa.string()),
            "event_time": pa.array(self.times),
            "intake": pa.array(self.intakes),
            "is_scored": pa.array(self.is_scored),
            "offset": pa.array(self.offsets),
            "traceparent": pa.array(self.traceparents, pa.string()),
        }
        for name, keys in self.entities.items():
            columns[f"entity:{name}"] = pa.array(keys, pa.string())
        for index, name in enumerate(self.features):
            columns[f"value:{name}"] = pa.array(self.values[:, index])
            columns[f"status:{name}"] = pa.array(self.statuses[:, index])
        metadata = {
            "definition_hash": self.definition_hash,
            "partition": str(self.partition),
            "is_replayed": str(int(self.is_replayed)),
        }
        return pa.record_batch(columns, metadata=metadata)

    def encode(self) -> Iterator[bytes]:
        """Arrow messages, each below the size that a topic accepts."""
        return encode_batch(self.table())

    @classmethod
    def decode(cls, value: bytes) -> VectorBatch:
        """Read one Arrow message.

        Raises:
            InvalidEvent: the record is not one of ours.
        """
        batch, metadata = decode_batch(value)
        names = batch.schema.names
        features = tuple(name.removeprefix("value:") for name in names if name.startswith("value:"))
        shape = (batch.num_rows, len(features))
        values = np.empty(shape, np.float64)
        statuses = np.empty(shape, np.uint8)
        for index, name in enumerate(features):
            values[:, index] = batch.column(f"value:{name}").to_numpy()
            statuses[:, index] = batch.column(f"status:{name}").to_numpy()
        return cls(
            metadata["definition_hash"],
            features,
            batch.column("id").to_pylist(),
            batch.column("unit").to_pylist(),
            batch.column("event_time").to_numpy(),
            batch.column("intake").to_numpy(),
            values,
            statuses,
            batch.column("is_scored").to_numpy(zero_copy_only=False),
            {
                name.removeprefix("entity:"): batch.column(name).to_pylist()
                for name in names
                if name.startswith("entity:")
            },
            int(metadata["partition"]),
            batch.column("offset").to_numpy(),
            batch.column("traceparent").to_pylist(),
            metadata["is_replayed"] == "1",
        )
