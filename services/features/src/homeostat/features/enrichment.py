"""An event's way through the entities, as pure steps over batches: accept, fold, hand on.

Nothing here waits or talks to a server. Records come in as they were consumed, what is to be sent
goes out as values, so that the simulator can run the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np

from homeostat.common.durations import whole_milliseconds
from homeostat.common.errors import UNREADABLE, InvalidEvent, Reason, why_unreadable
from homeostat.common.events import Event, EventColumns, EventContract
from homeostat.common.feature_store.views import FeatureView, Vectors, hashes
from homeostat.common.pipeline.spec import Pipeline
from homeostat.common.schemas.hops import EventHop, Hop, LabelHop
from homeostat.common.schemas.vectors import VectorBatch
from homeostat.common.windows import EntityFold, Events, State, Status


class Counter(StrEnum):
    """The books: received = too_late + dead + duplicate + on_time + late_merged."""

    RECEIVED = "received"
    TOO_LATE = "too_late"
    DEAD = "dead"
    DUPLICATE = "duplicate"
    ON_TIME = "on_time"
    LATE_MERGED = "late_merged"  # older than the pipeline's freshness when it came: not scored
    LABELS = "labels"
    LABELS_DEAD = "labels_dead"
    LABELS_DUPLICATE = "labels_duplicate"
    LABELS_PARKED = "labels_parked"  # came before their event, or for one that never comes
    LABELS_UNPARKED = "labels_unparked"  # and whose event has come since
    LABELS_JOINED = "labels_joined"
    CORRECTIONS = "corrections"
    FOREIGN = "foreign"  # on an internal topic, and none of ours: dead-lettered
    REPEATED = "repeated"  # sent again after a crash, and dropped by its source
    LOST = "lost"  # expired from the topic before they were read
    UNEMITTED = "unemitted"  # computed under two definitions at once: folded, no vector


class Received(Protocol):
    """What a step sees of a consumed record."""

    @property
    def value(self) -> bytes | None: ...

    @property
    def offset(self) -> int: ...


@dataclass
class Accepted:
    """The outcome of reading raw events: row numbers of the batch in each of three piles."""

    rows: list[int] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    late: list[int] = field(default_factory=list)
    dead: list[tuple[int, InvalidEvent]] = field(default_factory=list)


class Intake:
    """Reads raw events, and shapes the first hop of those that are good and not too late."""

    def __init__(self, view: FeatureView, contract: EventContract) -> None:
        pipeline = view.pipeline
        self._contract = contract
        self._lateness = whole_milliseconds(pipeline.lateness)
        self._freshness = whole_milliseconds(pipeline.freshness)
        self._values: list[float | None] = [None] * len(view.aggregate_names)
        self._statuses = [int(Status.MISSING)] * len(view.aggregate_names)

    def accept(self, records: Sequence[Received], intakes: Sequence[int]) -> Accepted:
        accepted = Accepted()
        parse, lateness = self._contract.parse_published, self._lateness
        for row, (record, intake) in enumerate(zip(records, intakes, strict=True)):
            try:
                event = parse(record.value or b"", now=intake)
            except InvalidEvent as error:
                accepted.dead.append((row, error))
                continue
            if intake - event.time > lateness:
                accepted.late.append(row)
            else:
                accepted.rows.append(row)
                accepted.events.append(event)
        return accepted

    def hop(self, event: Event) -> bytes:
        return _encode(
            EventHop(
                event.id,
                event.time,
                event.intake,
                msgspec.Raw(self._contract.encode(event)),
                self._values,
                self._statuses,
                event.intake - event.time <= self._freshness,
            )
        )


def entity_keys(pipeline: Pipeline) -> Callable[[Event], dict[str, str]]:
    """The keys of an event's entities; an entity whose field is null is left out."""
    names = pipeline.entities

    def keys(event: Event) -> dict[str, str]:
        found = ((name, getattr(event.payload, name)) for name in names)
        return {name: key for name, key in found if key is not None}

    return keys


def record_key(key: str | None, event_id: str) -> bytes:
    """The Kafka key under which an event passes an entity; a null key spreads by event id."""
    return (event_id if key is None else key).encode()


@dataclass(frozen=True)
class Passed:
    """Events that have been through a stage, and what they carry now; rows are the batch's."""

    rows: list[int]
    hops: list[EventHop]
    columns: EventColumns
    aggregates: Vectors

    def __len__(self) -> int:
        return len(self.rows)

    def onward(self) -> Iterator[bytes]:
        """The hops to the next entity."""
        for hop, values, statuses in zip(
            self.hops,
            self.aggregates.values.tolist(),
            self.aggregates.statuses.tolist(),
            strict=True,
        ):
            yield _encode(
                EventHop(hop.id, hop.time, hop.intake, hop.event, values, statuses, hop.is_scored)
            )


def vector_batch(
    view: FeatureView,
    passed: Passed,
    chosen: Sequence[int],
    *,
    partition: int,
    records: Sequence[Received],
    traceparents: Sequence[str | None],
    is_replayed: bool,
) -> VectorBatch:
    """Shape the chosen of the events that have passed the last entity as vectors.

    ``records`` and ``traceparents`` are the batch's, by row; ``chosen`` counts in ``passed``.
    """
    vectors = view.finish(passed.columns, passed.aggregates)
    strings = passed.columns.strings
    units = strings[view.pipeline.unit]
    rows = [passed.rows[index] for index in chosen]
    hops = [passed.hops[index] for index in chosen]
    return VectorBatch(
        definition_hash=view.definition_hash,
        features=view.feature_names,
        ids=[hop.id for hop in hops],
        units=[units[index] or "" for index in chosen],
        times=np.array([hop.time for hop in hops], np.int64),
        intakes=np.array([hop.intake for hop in hops], np.int64),
        values=vectors.values[chosen],
        statuses=vectors.statuses[chosen],
        is_scored=np.array([hop.is_scored for hop in hops], np.bool_),
        entities={name: [strings[name][index] for index in chosen] for name in view.entities},
        partition=partition,
        offsets=np.array([records[row].offset for row in rows], np.int64),
        traceparents=[traceparents[row] for row in rows],
        is_replayed=is_replayed,
    )


@dataclass
class Decoded:
    """Hops by their row of the batch, and the payloads of those that are events."""

    hops: dict[int, Hop] = field(default_factory=dict)
    payloads: dict[int, msgspec.Struct] = field(default_factory=dict)
    dead: list[tuple[int, InvalidEvent]] = field(default_factory=list)


class KeyedLabel(NamedTuple):
    """A label at a row of the batch, for one entity key."""

    row: int
    key: str
    hop: LabelHop


class Stage:
    """One entity's fold of one partition: hops in, hops with values out."""

    def __init__(self, view: FeatureView, entity: str, contract: EventContract) -> None:
        self.fold: EntityFold = view.folds[entity]
        self.state: State = self.fold.new_state()
        self._view = view
        self._entity = entity
        self._is_first = entity == view.entities[0]
        self._contract = contract

    def decode(self, records: Sequence[Received]) -> Decoded:
        """Read hops; those that are none of ours are dead."""
        decoded = Decoded()
        for row, record in enumerate(records):
            try:
                hop = _decode(record.value or b"")
                if isinstance(hop, EventHop):
                    decoded.payloads[row] = self._contract.decode(hop.event)
            except UNREADABLE as error:
                decoded.dead.append((row, _unreadable(error)))
            else:
                decoded.hops[row] = hop
        return decoded

    def fits(self, hop: EventHop) -> bool:
        """Whether a hop was made under this definition's list of aggregates."""
        return len(hop.values) == len(self._view.aggregate_names)

    def pass_through(
        self,
        rows: list[int],
        hops: list[EventHop],
        payloads: list[msgspec.Struct],
        labels: list[KeyedLabel],
    ) -> Passed:
        """Fold events and labels in the order of the log, and give each event its values.

        Labels commute with events of other keys, so that only a label that follows an event of
        its own key divides the batch.
        """
        columns = self._contract.columns_of(payloads)
        keys = columns.strings[self._entity]
        events = self._view.events(self._entity, columns)
        aggregates = self._carried(hops)
        for first, end, before in _segments(rows, keys, labels):
            if before and self.fold.uses_labels:
                self._fold_labels(before)
            part = slice(first, end)
            folded = self.fold.fold_events(
                self.state, self.state.intern(keys[part]), _slice(events, part)
            )
            self._view.place(
                Vectors(aggregates.values[part], aggregates.statuses[part]),
                self._entity,
                Vectors(folded.values, folded.statuses),
            )
        return Passed(rows, hops, columns, aggregates)

    def _fold_labels(self, labels: list[KeyedLabel]) -> None:
        hops = [label.hop for label in labels]
        self.fold.fold_labels(
            self.state,
            self.state.intern([label.key for label in labels]),
            self.fold.labels(
                [hop.time for hop in hops],
                hashes([hop.id for hop in hops]),
                [hop.label for hop in hops],
            ),
        )

    def _carried(self, hops: list[EventHop]) -> Vectors:
        """What the entities before have computed."""
        if self._is_first:
            return self._view.unanswered(len(hops))
        shape = (len(hops), len(self._view.aggregate_names))
        return Vectors(
            np.array([hop.values for hop in hops], np.float64).reshape(shape),
            np.array([hop.statuses for hop in hops], np.uint8).reshape(shape),
        )


def _slice(events: Events, part: slice) -> Events:
    return events._replace(
        times=events.times[part],
        hashes=events.hashes[part],
        values=events.values[part],
        valid=events.valid[part],
    )


def _segments(
    rows: list[int], keys: Sequence[str | None], labels: list[KeyedLabel]
) -> Iterator[tuple[int, int, list[KeyedLabel]]]:
    """Cut a batch into (first event, end, labels to fold before them)."""
    if not labels:
        yield 0, len(rows), []
        return
    first = at = 0
    before: list[KeyedLabel] = []
    touched: set[str | None] = set()
    for label in labels:
        while at < len(rows) and rows[at] < label.row:
            touched.add(keys[at])
            at += 1
        if label.key in touched:
            yield first, at, before
            first, before, touched = at, [], set()
        before.append(label)
    yield first, len(rows), before


def _unreadable(error: Exception) -> InvalidEvent:
    return InvalidEvent(f"not a record of ours: {why_unreadable(error)}", reason=Reason.UNPARSABLE)


_encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode
_decode: Callable[[bytes], Hop] = msgspec.json.Decoder(Hop).decode
