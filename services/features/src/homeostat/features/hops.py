"""Hops in memory, as columns, and how they become records of an entity's log and come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from homeostat.common.errors import UNREADABLE, InvalidEvent, Reason, why_unreadable
from homeostat.common.event_columns import EventColumns, recoded
from homeostat.common.feature_store.views import FeatureView, Vectors
from homeostat.common.pipeline.spec import FieldType
from homeostat.common.schemas.hops import MAX_ROWS, EventBatch, HopBatch, LabelBatch, places
from homeostat.common.topics import ARROW_MESSAGE_BYTES

ROWS_AT_ONCE = 4_096  # of a record, before its size is looked at

Rows = NDArray[np.intp]
I64 = np.ndarray[tuple[int], np.dtype[np.int64]]
U64 = NDArray[np.uint64]
F64 = np.ndarray[tuple[int], np.dtype[np.float64]]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class EventHops:
    """``n`` events at a point of their way; ``places`` is where they lie in the log read last."""

    columns: EventColumns
    hashes: U64  # of the ids
    intakes: I64  # epoch ms, the pipeline's clock
    is_scored: Mask
    places: I64
    aggregates: Vectors
    traceparents: Sequence[str | None]
    is_replayed: bool

    def __len__(self) -> int:
        return len(self.columns)

    def take(self, rows: Rows) -> EventHops:
        """The chosen events, in the order given."""
        return EventHops(
            self.columns.take(rows),
            self.hashes[rows],
            self.intakes[rows],
            self.is_scored[rows],
            self.places[rows],
            Vectors(self.aggregates.values[rows], self.aggregates.statuses[rows]),
            [self.traceparents[row] for row in rows.tolist()],
            self.is_replayed,
        )

    def where(self, mask: Mask) -> EventHops:
        return self if mask.all() else self.take(np.flatnonzero(mask))

    @classmethod
    def joined(cls, parts: Sequence[EventHops]) -> EventHops:
        """One after another; at least one."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            EventColumns.joined([part.columns for part in parts]),
            np.concatenate([part.hashes for part in parts]),
            np.concatenate([part.intakes for part in parts]),
            np.concatenate([part.is_scored for part in parts]),
            np.concatenate([part.places for part in parts]),
            Vectors(
                np.concatenate([part.aggregates.values for part in parts]),
                np.concatenate([part.aggregates.statuses for part in parts]),
            ),
            list(chain.from_iterable(part.traceparents for part in parts)),
            any(part.is_replayed for part in parts),
        )


@dataclass(frozen=True)
class LabelHops:
    """``n`` joined labels; ``keys`` by every field that may be an entity's key."""

    ids: list[str]
    hashes: U64
    keys: Mapping[str, Sequence[str | None]]
    times: I64  # of the events
    intakes: I64
    labels: F64
    places: I64
    traceparents: Sequence[str | None]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Rows) -> LabelHops:
        picked = rows.tolist()
        return LabelHops(
            [self.ids[row] for row in picked],
            self.hashes[rows],
            {name: [column[row] for row in picked] for name, column in self.keys.items()},
            self.times[rows],
            self.intakes[rows],
            self.labels[rows],
            self.places[rows],
            [self.traceparents[row] for row in picked],
        )

    def where(self, mask: Mask) -> LabelHops:
        return self if mask.all() else self.take(np.flatnonzero(mask))

    def keys_of(self, entity: str) -> Sequence[str | None]:
        """The keys of an entity; null if its field is newer than the labels."""
        return self.keys.get(entity) or [None] * len(self)


Hops = EventHops | LabelHops
H = TypeVar("H", EventHops, LabelHops)


class Sent(NamedTuple):
    """A record that was read: its hops, and where each of them was computed from."""

    hops: Hops
    stream: str  # topic of the immediate input; empty where it is always the same
    source: int  # partition there
    sources: I64  # places there


Seen = dict[str, dict[int, int]]  # by stream and its partition: the last place that came from it


def unseen(sent: Sent, seen: Seen) -> Mask:
    """Which hops of a record lie behind the last one that came from the same input; noted."""
    by_source = seen.setdefault(sent.stream, {})
    last = by_source.get(sent.source, -1)
    by_source[sent.source] = max(last, int(sent.sources.max()))
    return sent.sources > last


class HopCodec:
    """Hops of one pipeline as records, and back."""

    def __init__(self, view: FeatureView) -> None:
        fields = view.pipeline.published_fields
        self._view = view
        self._strings = [name for name, spec in fields.items() if spec.type is FieldType.STRING]
        self._numbers = [name for name, spec in fields.items() if spec.type is not FieldType.STRING]
        self._categories = {
            name: list(spec.values or ())
            for name, spec in fields.items()
            if spec.type is FieldType.CATEGORY
        }

    def encode_events(self, hops: EventHops, source: int) -> Iterator[bytes]:
        """Records of hops that come from the partition ``source``, before any entity's values."""
        return self._encode_events(hops, source, is_passed=False)

    def encode_onward(self, hops: EventHops, source: int) -> Iterator[bytes]:
        """The same, with the values of the entities that they have passed."""
        return self._encode_events(hops, source, is_passed=True)

    def encode_labels(self, hops: LabelHops, stream: str, source: int) -> Iterator[bytes]:
        """Records of labels that come from a partition of the topic ``stream``."""

        def batch(part: LabelHops) -> LabelBatch:
            return LabelBatch(
                stream=stream,
                source=source,
                sources=part.places.tobytes(),
                ids=part.ids,
                hashes=part.hashes.tobytes(),
                keys={name: [*column] for name, column in part.keys.items()},
                times=part.times.tobytes(),
                intakes=part.intakes.tobytes(),
                labels=part.labels.tobytes(),
                traceparents=_unless_empty(part.traceparents),
            )

        return _records(hops, batch)

    def decode(self, value: bytes, offset: int) -> Sent:
        """Read the record at an offset of an entity's log.

        Raises:
            InvalidEvent: it is none of ours, or of another contract of the fields.
        """
        try:
            batch = _decode(value)
            sources = _i64(batch.sources)
            if isinstance(batch, EventBatch):
                return _checked(Sent(self._events(batch, offset), "", batch.source, sources))
            return _checked(Sent(_labels(batch, offset), batch.stream, batch.source, sources))
        except (*UNREADABLE, ValueError, IndexError, KeyError) as error:
            raise InvalidEvent(
                f"not a record of ours: {why_unreadable(error)}", reason=Reason.UNPARSABLE
            ) from error

    def _encode_events(self, hops: EventHops, source: int, *, is_passed: bool) -> Iterator[bytes]:
        def batch(part: EventHops) -> EventBatch:
            values, statuses = part.aggregates
            return EventBatch(
                source=source,
                sources=part.places.tobytes(),
                ids=part.columns.ids,
                hashes=part.hashes.tobytes(),
                times=part.columns.times.tobytes(),
                intakes=part.intakes.tobytes(),
                is_scored=part.is_scored.tobytes(),
                strings=dict(part.columns.strings),
                numbers={name: column.tobytes() for name, column in part.columns.numbers.items()},
                categories=self._categories,
                values=values.tobytes() if is_passed else b"",
                statuses=statuses.tobytes() if is_passed else b"",
                is_replayed=part.is_replayed,
                traceparents=_unless_empty(part.traceparents),
            )

        return _records(hops, batch)

    def _events(self, batch: EventBatch, offset: int) -> EventHops:
        count = len(batch.ids)
        aggregates = self._view.unanswered(count)
        if batch.values:
            shape = aggregates.values.shape
            aggregates = Vectors(
                np.frombuffer(batch.values).reshape(shape).copy(),
                np.frombuffer(batch.statuses, np.uint8).reshape(shape).copy(),
            )
        return EventHops(
            EventColumns(
                batch.ids,
                _i64(batch.times),
                {name: _texts(batch, name) for name in self._strings},
                {name: self._number(batch, name) for name in self._numbers},
            ),
            np.frombuffer(batch.hashes, np.uint64),
            _i64(batch.intakes),
            np.frombuffer(batch.is_scored, np.bool_),
            places(offset, count),
            aggregates,
            batch.traceparents or [None] * count,
            batch.is_replayed,
        )

    def _number(self, batch: EventBatch, name: str) -> F64:
        """A column of numbers; categories by the list in use, which may have changed since."""
        if name in batch.strings:
            raise ValueError(f"field {name} was text")
        if name not in batch.numbers:
            return np.full(len(batch.ids), np.nan)
        column = np.frombuffer(batch.numbers[name])
        known = self._categories.get(name)
        return column if known is None else recoded(column, batch.categories[name], known)


def _texts(batch: EventBatch, name: str) -> list[str | None]:
    """A column of texts; all null where the field is newer than the record."""
    if name in batch.numbers:
        raise ValueError(f"field {name} was a number")
    return batch.strings.get(name) or [None] * len(batch.ids)


def by_partition(hops: H, partitions: Sequence[int]) -> Iterator[tuple[int, H]]:
    """Hops by the partition that each of them goes to; the order of each one's stays."""
    chosen = np.array(partitions)
    for partition in np.unique(chosen).tolist():
        yield partition, hops.where(chosen == partition)


def _records(hops: H, batch: Callable[[H], HopBatch]) -> Iterator[bytes]:
    """Records of hops, each of them of a size that a topic takes."""
    for first in range(0, len(hops), ROWS_AT_ONCE):
        rows = np.arange(first, min(first + ROWS_AT_ONCE, len(hops)))
        part = hops if rows.size == len(hops) else hops.take(rows)
        value = _encode(batch(part))
        if len(value) <= ARROW_MESSAGE_BYTES or len(part) == 1:
            yield value
        else:
            half = len(part) // 2
            for rows in (np.arange(half), np.arange(half, len(part))):
                yield from _records(part.take(rows), batch)


def _labels(batch: LabelBatch, offset: int) -> LabelHops:
    count = len(batch.ids)
    return LabelHops(
        batch.ids,
        np.frombuffer(batch.hashes, np.uint64),
        batch.keys,
        _i64(batch.times),
        _i64(batch.intakes),
        np.frombuffer(batch.labels),
        places(offset, count),
        batch.traceparents or [None] * count,
    )


def _checked(sent: Sent) -> Sent:
    """Refuse what decodes, and whose columns are not of one length."""
    hops, count = sent.hops, len(sent.hops)
    columns: list[Any] = [hops.hashes, hops.intakes, hops.traceparents, sent.sources]
    if isinstance(hops, EventHops):
        events = hops.columns
        columns += [
            hops.is_scored,
            events.times,
            *events.strings.values(),
            *events.numbers.values(),
        ]
    else:
        columns += [*hops.keys.values(), hops.times, hops.labels]
    if any(len(column) != count for column in columns) or not 0 < count <= MAX_ROWS:
        raise ValueError(f"its columns are not all of the same 1 to {MAX_ROWS} rows")
    return sent


def _i64(packed: bytes) -> I64:
    return np.frombuffer(packed, np.int64)


def _unless_empty(traceparents: Sequence[str | None]) -> list[str | None] | None:
    return list(traceparents) if any(traceparents) else None


_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], HopBatch] = msgspec.msgpack.Decoder(HopBatch).decode
