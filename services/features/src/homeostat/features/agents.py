"""What the partitions of each input topic do with a batch: events, labels, one stage an entity."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from aiokafka import ConsumerRecord, TopicPartition

from homeostat.common import kafka, topics
from homeostat.common.durations import whole_milliseconds
from homeostat.common.errors import InvalidEvent
from homeostat.common.feature_store.views import hashes
from homeostat.common.schemas.hops import LabelHop
from homeostat.common.schemas.labels import read_label
from homeostat.common.windows.rows import NO_TIME
from homeostat.features.changelog import Changes
from homeostat.features.deduplication import RecentIds
from homeostat.features.enrichment import (
    Counter,
    Decoded,
    Intake,
    KeyedLabel,
    Passed,
    Stage,
    entity_keys,
    record_key,
    vector_batch,
)
from homeostat.features.label_index import Fate, LabelIndex
from homeostat.features.outcomes import IndexedEvent, Joined, KnownLabel
from homeostat.features.partitions import Arrival, Context, InputPartition, retried
from homeostat.features.progress import EVENTS, LABELS
from homeostat.features.publisher import Outgoing, Outputs

SERVICE = b"features"
# What a dead letter keeps of its record: within what a topic takes, with room for the headers.
MAX_KEPT_HEADER_BYTES = 16_000
MAX_KEPT_BYTES = topics.MAX_MESSAGE_BYTES


_Sending = defaultdict[str, list[Outgoing]]


class EventsPartition(InputPartition):
    """Reads raw events: index for labels, first hop, too late, dead."""

    def __init__(self, source: TopicPartition, context: Context) -> None:
        name = context.pipeline
        super().__init__(
            source, context, state_topic=topics.POSITIONS.of(name), progress_name=EVENTS
        )
        self._intake = Intake(context.view, context.contract)
        self._index = _label_index(context)
        self._keys = entity_keys(context.view.pipeline)
        self._first = context.view.entities[0]
        self._first_topic = topics.BY_ENTITY.of(name, self._first)
        self._joins = JoinedSender(context)

    async def handle(
        self,
        records: Sequence[ConsumerRecord],
        arrivals: Sequence[Arrival],
        traceparents: Sequence[str | None],
    ) -> Outputs:
        accepted = self._intake.accept(records, [arrival.intake for arrival in arrivals])
        sources = [_source(records[row]) for row in accepted.rows]
        events = [IndexedEvent(event.time, self._keys(event)) for event in accepted.events]
        ids = [event.id for event in accepted.events]
        joined = await retried(
            lambda: self._index.add_events(ids, [source.decode() for source in sources], events),
            what="label index",
        )
        outputs: _Sending = defaultdict(list)
        hops = outputs[self._first_topic]
        for row, event, source, indexed, labels in zip(
            accepted.rows, accepted.events, sources, events, joined, strict=True
        ):
            headers = arrivals[row].headers(source, traceparents[row])
            key = record_key(indexed.entities.get(self._first), event.id)
            hops.append(Outgoing(key, self._intake.hop(event), headers))
            for label in labels:
                self._joins.send(label, self.source, headers, outputs)
                self.count(Counter.LABELS_UNPARKED)
        for row in accepted.late:
            late = topics.LATE.of(self.context.pipeline)
            outputs[late].append(_copied(records[row], arrivals[row], traceparents[row]))
        for row, error in accepted.dead:
            dead_letter(self.context.pipeline, records[row], error, outputs)
        self.count(Counter.RECEIVED, len(records))
        self.count(Counter.TOO_LATE, len(accepted.late))
        self.count(Counter.DEAD, len(accepted.dead))
        return outputs


class LabelsPartition(InputPartition):
    """Reads labels: joined with their event, or parked until it comes."""

    def __init__(self, source: TopicPartition, context: Context) -> None:
        super().__init__(
            source,
            context,
            state_topic=topics.POSITIONS.of(context.pipeline),
            progress_name=LABELS,
        )
        self._index = _label_index(context)
        self._joins = JoinedSender(context)

    async def handle(
        self,
        records: Sequence[ConsumerRecord],
        arrivals: Sequence[Arrival],
        traceparents: Sequence[str | None],
    ) -> Outputs:
        outputs: _Sending = defaultdict(list)
        rows, ids, known = [], [], []
        for row, (record, arrival) in enumerate(zip(records, arrivals, strict=True)):
            try:
                label = read_label(record.value or b"")
            except InvalidEvent as error:
                dead_letter(self.context.pipeline, record, error, outputs)
                continue
            rows.append(row)
            ids.append(label.id)
            known.append(KnownLabel(label.label, arrival.intake))
        offsets = [records[row].offset for row in rows]
        answers = await retried(
            lambda: self._index.add_labels(ids, offsets, known), what="label index"
        )
        for row, answer in zip(rows, answers, strict=True):
            self.count(_FATES[answer.fate])
            if answer.joined is not None:
                headers = arrivals[row].headers(_source(records[row]), traceparents[row])
                self._joins.send(answer.joined, self.source, headers, outputs)
                if answer.joined.version > 1:
                    self.count(Counter.CORRECTIONS)
        self.count(Counter.LABELS, len(records))
        self.count(Counter.LABELS_DEAD, len(records) - len(rows))
        return outputs


class StagePartition(InputPartition):
    """Folds one entity's events and labels, and hands the events on with their values."""

    has_rows = True
    must_be_gapless = True

    def __init__(self, source: TopicPartition, context: Context, entity: str) -> None:
        name, entities = context.pipeline, context.view.entities
        super().__init__(
            source,
            context,
            state_topic=topics.STATE.of(name, entity),
            progress_name=entity,
        )
        self._stage = Stage(context.view, entity, context.contract)
        self._entity = entity
        self._is_first = entity == entities[0]
        self._next = dict(pairwise(entities)).get(entity)
        settings = context.settings
        self._ids = RecentIds(
            horizon_ms=whole_milliseconds(settings.deduplication_horizon),
            capacity=settings.deduplication_ids,
        )

    def restore_rows(self, rows: dict[str, bytes], ids: dict[int, bytes]) -> None:
        fold = self._stage.fold
        if self.marker.definition not in ("", fold.definition_hash):
            self._begin_again()
        else:
            fold.unpack(
                self._stage.state, self._stage.state.intern(list(rows)), list(rows.values())
            )
            self._stage.state.take_changed()
            self._ids.restore(ids)
        self.marker.definition = fold.definition_hash

    def _begin_again(self) -> None:
        """Fold the topic anew under a changed definition; what was sent is not sent again."""
        self.marker.emit_from = max(self.marker.emit_from, self.marker.position)
        self.marker.position = 0
        self.marker.seen = {}

    def take_changes(self) -> Changes:
        ids = dict(self._ids.take_changed()) if self._is_first else {}
        return Changes(self._packed(self._stage.state.take_changed()), ids)

    def all_rows(self) -> dict[str, bytes]:
        newest = self._stage.state.rows.newest
        return self._packed(np.flatnonzero(newest != NO_TIME).astype(np.int32))

    def _packed(self, numbers: np.ndarray[tuple[int], np.dtype[np.int32]]) -> dict[str, bytes]:
        state = self._stage.state
        packed = self._stage.fold.pack(state, numbers)
        return dict(zip(state.keys(numbers), packed, strict=True))

    async def handle(
        self,
        records: Sequence[ConsumerRecord],
        arrivals: Sequence[Arrival],
        traceparents: Sequence[str | None],
    ) -> Outputs:
        outputs: _Sending = defaultdict(list)
        decoded = self._stage.decode(records)
        for row, error in decoded.dead:
            dead_letter(self.context.pipeline, records[row], error, outputs)
            self.count(Counter.FOREIGN)
        rows, labels = self._new(records, arrivals, decoded)
        rows = self._once(rows, decoded, arrivals)
        passed = self._stage.pass_through(
            rows,
            [decoded.hops[row] for row in rows],  # type: ignore[misc]  # _new has sorted them
            [decoded.payloads[row] for row in rows],
            labels,
        )
        self._count(passed, records)
        self._hand_on(passed, records, arrivals, traceparents, outputs)
        return outputs

    def _new(
        self,
        records: Sequence[ConsumerRecord],
        arrivals: Sequence[Arrival],
        decoded: Decoded,
    ) -> tuple[list[int], list[KeyedLabel]]:
        """Rows of events, and labels, that no record before has brought already."""
        rows: list[int] = []
        labels: list[KeyedLabel] = []
        for row, hop in decoded.hops.items():
            if not self._is_new(arrivals[row]):
                self.count(Counter.REPEATED)
            elif isinstance(hop, LabelHop):
                labels.append(KeyedLabel(row, records[row].key.decode(), hop))
            else:
                rows.append(row)
        return rows, labels

    def _is_new(self, arrival: Arrival) -> bool:
        if arrival.source is None:
            return True
        partition, offset = arrival.source
        seen = self.marker.seen.setdefault(arrival.stream or "", {})
        if offset <= seen.get(partition, -1):
            return False
        seen[partition] = offset
        return True

    def _once(self, rows: list[int], decoded: Decoded, arrivals: Sequence[Arrival]) -> list[int]:
        """Without events whose id has been folded already: the first entity sees them all."""
        if not self._is_first or not rows:
            return rows
        now = max(arrivals[row].intake for row in rows)
        is_new = self._ids.admit(hashes([decoded.hops[row].id for row in rows]), now)
        once = [row for row, new in zip(rows, is_new.tolist(), strict=True) if new]
        self.count(Counter.DUPLICATE, len(rows) - len(once))
        return once

    def _count(self, passed: Passed, records: Sequence[ConsumerRecord]) -> None:
        if not self._is_first:
            return
        counted = [
            hop.is_scored
            for row, hop in zip(passed.rows, passed.hops, strict=True)
            if records[row].offset >= self.marker.emit_from
        ]
        self.count(Counter.ON_TIME, sum(counted))
        self.count(Counter.LATE_MERGED, len(counted) - sum(counted))

    def _hand_on(
        self,
        passed: Passed,
        records: Sequence[ConsumerRecord],
        arrivals: Sequence[Arrival],
        traceparents: Sequence[str | None],
        outputs: _Sending,
    ) -> None:
        chosen = [
            index
            for index, (row, hop) in enumerate(zip(passed.rows, passed.hops, strict=True))
            if records[row].offset >= self.marker.emit_from and self._stage.fits(hop)
        ]
        if not chosen:
            return
        if self._next is None:
            batch = vector_batch(
                self.context.view,
                passed,
                chosen,
                partition=self.source.partition,
                records=records,
                traceparents=traceparents,
                is_replayed=any(
                    arrivals[passed.rows[index]].available_at is not None for index in chosen
                ),
            )
            topic = topics.FEATURES.of(self.context.pipeline)
            stamp = str(int(batch.intakes.max())).encode()
            headers = [(kafka.AVAILABLE_AT, stamp)] if batch.is_replayed else []
            outputs[topic] += [
                Outgoing(None, value, headers, self.source.partition) for value in batch.encode()
            ]
            return
        topic = topics.BY_ENTITY.of(self.context.pipeline, self._next)
        keys = passed.columns.strings[self._next]
        hops = list(passed.onward())
        for index in chosen:
            row = passed.rows[index]
            headers = arrivals[row].headers(_source(records[row]), traceparents[row])
            key = record_key(keys[index], passed.hops[index].id)
            outputs[topic].append(Outgoing(key, hops[index], headers))


class JoinedSender:
    """Turns a joined label into what is sent: the outcome, and hops to entities that fold it."""

    def __init__(self, context: Context) -> None:
        name, view = context.pipeline, context.view
        self._outcomes = topics.OUTCOMES.of(name)
        self._entities = [entity for entity in view.entities if view.folds[entity].uses_labels]
        self._topics = {entity: topics.BY_ENTITY.of(name, entity) for entity in self._entities}

    def send(
        self,
        joined: Joined,
        source: TopicPartition,
        headers: list[tuple[str, bytes]],
        outputs: _Sending,
    ) -> None:
        named = [*headers, (kafka.SOURCE_TOPIC, source.topic.encode())]
        outputs[self._outcomes].append(Outgoing(joined.id.encode(), joined.outcome(), named))
        for entity, (key, hop) in joined.hops(self._entities).items():
            outputs[self._topics[entity]].append(Outgoing(key.encode(), hop, named))


def dead_letter(
    pipeline: str, record: ConsumerRecord, error: InvalidEvent, outputs: _Sending
) -> None:
    """The record as it came, with where it lay and what is wrong with it.

    What would not fit into one message (a record may come compressed) is cut, and says so.
    """
    told = [
        ("__streams.errors.topic", record.topic.encode()),
        ("__streams.errors.partition", str(record.partition).encode()),
        ("__streams.errors.offset", str(record.offset).encode()),
        ("__streams.errors.exception", type(error).__name__.encode()),
        ("__streams.errors.message", str(error).encode()),
        ("errors.reason", error.reason.value.encode()),
        ("errors.service", SERVICE),
        ("errors.attempt", b"1"),
        ("errors.first_seen", str(record.timestamp).encode()),
    ]
    brought = [(name, value or b"") for name, value in record.headers]
    if sum(len(name) + len(value) for name, value in brought) > MAX_KEPT_HEADER_BYTES:
        brought = []
    key = record.key if len(record.key or b"") <= MAX_KEPT_HEADER_BYTES else None
    value = record.value
    if value is not None and len(value) > MAX_KEPT_BYTES:
        value = value[:MAX_KEPT_BYTES]
        told.append(("errors.value_bytes", str(len(record.value)).encode()))
    letter = Outgoing(key, value, [*brought, *told])
    outputs[topics.DEAD_LETTERS.of(pipeline)].append(letter)


def _copied(record: ConsumerRecord, arrival: Arrival, traceparent: str | None) -> Outgoing:
    headers = arrival.headers(_source(record), traceparent)
    return Outgoing(record.key, record.value, headers)


def _source(record: ConsumerRecord) -> bytes:
    return b"%d:%d" % (record.partition, record.offset)


def _label_index(context: Context) -> LabelIndex:
    ttl = context.view.pipeline.source.label.maturity + context.settings.label_grace
    return LabelIndex(context.redis, context.pipeline, ttl=ttl)


_FATES = {
    Fate.JOINED: Counter.LABELS_JOINED,
    Fate.PARKED: Counter.LABELS_PARKED,
    Fate.DUPLICATE: Counter.LABELS_DUPLICATE,
    Fate.REPEATED: Counter.REPEATED,
}
