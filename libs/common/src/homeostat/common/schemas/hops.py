"""What passes from entity to entity inside ``features``: events with their values, and labels.

One record holds many hops, all of them of the partition that it lies in, as columns: MessagePack
around packed little-endian arrays. A hop's *place* in a log is one number that grows along the log:
its record's offset and its row in that record.
"""

from __future__ import annotations

import msgspec
import numpy as np

MAX_ROWS = 1 << 16  # of one record

I64 = np.ndarray[tuple[int], np.dtype[np.int64]]


def places(offset: int, rows: int) -> I64:
    """The places of the rows of one record.

    >>> places(3, 2).tolist(), offset_of(196609)
    ([196608, 196609], 3)
    """
    return offset * MAX_ROWS + np.arange(rows)


def offset_of(place: int) -> int:
    """The offset of the record that holds a place."""
    return place // MAX_ROWS


class EventBatch(msgspec.Struct, frozen=True, array_like=True, tag="events", gc=False):
    """Events on their way through the entities, ``n`` rows.

    ``numbers`` hold a category as the index into its list in ``categories``. ``values`` and
    ``statuses`` hold, row by row, what the entities before have computed, in the order of the
    definition's aggregate features; both are empty before the first entity.
    """

    source: int  # partition of the immediate input
    sources: bytes  # int64, the places there
    ids: list[str]
    hashes: bytes  # uint64, of the ids
    times: bytes  # int64, epoch ms
    intakes: bytes  # int64, epoch ms, the pipeline's clock
    is_scored: bytes  # bool
    strings: dict[str, list[str | None]]
    numbers: dict[str, bytes]  # float64, NaN for null
    categories: dict[str, list[str]]
    values: bytes  # float64
    statuses: bytes  # uint8
    is_replayed: bool
    traceparents: list[str | None] | None  # none: of no row


class LabelBatch(msgspec.Struct, frozen=True, array_like=True, tag="labels", gc=False):
    """Joined labels, ``n`` rows; they change state and emit nothing.

    ``keys`` are of every field that may be an entity's key, null where the event had none.
    """

    stream: str  # topic of the immediate input
    source: int
    sources: bytes
    ids: list[str]
    hashes: bytes
    keys: dict[str, list[str | None]]
    times: bytes  # int64, of the events, epoch ms
    intakes: bytes  # int64, epoch ms, the pipeline's clock
    labels: bytes  # float64
    traceparents: list[str | None] | None


HopBatch = EventBatch | LabelBatch
