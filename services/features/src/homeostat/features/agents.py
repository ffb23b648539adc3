"""What the partitions of each input topic do with a batch: events, labels, one stage an entity."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise

import numpy as np
from aiokafka import ConsumerRecord, TopicPartition

from homeostat.common import kafka, topics
from homeostat.common.durations import whole_milliseconds
from homeostat.common.errors import InvalidEvent
from homeostat.common.feature_store.offline import LOG, table_path
from homeostat.common.schemas.labels import read_label
from homeostat.common.windows.rows import NO_TIME
from homeostat.features.arrivals import Arrival, RawFetch
from homeostat.features.changelog import Changes
from homeostat.features.deduplication import RecentIds
from homeostat.features.enrichment import (
    Accepted,
    Counter,
    Intake,
    Run,
    Stage,
    partition_keys,
    vector_batch,
)
from homeostat.features.history import kept_records
from homeostat.features.hops import EventHops, Hops, LabelHops, Sent, unseen
from homeostat.features.joining import JoinedRow, JoinedSender
from homeostat.features.label_index import Fate, LabelIndex
from homeostat.features.outcomes import Joined, KnownLabel
from homeostat.features.partitions import Context, Handled, InputPartition, Later, retried
from homeostat.features.progress import EVENTS, LABELS
from homeostat.features.publisher import Outgoing, Sending, by_target

SERVICE = b"features"
# What a dead letter keeps of its record: within what a topic takes, with room for the headers.
MAX_KEPT_HEADER_BYTES = 16_000
MAX_KEPT_BYTES = topics.MAX_MESSAGE_BYTES


class EventsPartition(InputPartition[RawFetch]):
    """Reads raw events: index for labels, first hop, too late, dead."""

    def __init__(self, source: TopicPartition, context: Context) -> None:
        name = context.pipeline
        super().__init__(source, context, state_topic=topics.POSITIONS.of(name), progress=EVENTS)
        self._intake = Intake(context.view, context.contract)
        self._index = _label_index(context)
        self._key = context.view.pipeline.source.key
        self._fields = context.view.pipeline.key_fields
        self._joins = JoinedSender(context, source)

    def read(self, records: Sequence[ConsumerRecord]) -> RawFetch:
        return RawFetch.of(records)

    async def handle(self, fetch: RawFetch, traceparents: Sequence[str | None]) -> Handled:
        records = fetch.records
        accepted = self._intake.accept(
            [record.value or b"" for record in records],
            intakes=fetch.intakes,
            places=np.array([record.offset for record in records], np.int64),
            traceparents=traceparents,
            is_replayed=fetch.is_replayed,
        )
        hops = accepted.hops
        outputs: Sending = defaultdict(list)
        outputs[topics.BY_KEY.of(self.context.pipeline)] += by_target(
            hops,
            partition_keys(hops.columns.strings[self._key], hops.columns.ids),
            self.context.partitions,
            lambda part: self.context.codec.encode_events(part, self.source.partition),
        )
        for row in accepted.late:
            late = topics.LATE.of(self.context.pipeline)
            outputs[late].append(_copied(records[row], fetch.arrival(row), traceparents[row]))
        for row, error in accepted.dead:
            dead_letter(self.context.pipeline, records[row], error, outputs)
        self.count(Counter.RECEIVED, len(records))
        self.count(Counter.TOO_LATE, len(accepted.late))
        self.count(Counter.DEAD, len(accepted.dead))
        return Handled(outputs, lambda: self._join(accepted, fetch))

    async def _join(self, accepted: Accepted, fetch: RawFetch) -> Later:
        """Index the events, and send the labels that came before them."""
        hops = accepted.hops
        waiting: list[tuple[int, Joined]] = await retried(
            lambda: self._index.add_events(
                hops.columns,
                fields=self._fields,
                partition=self.source.partition,
                offsets=hops.places,
            ),
            what="label index",
        )
        joined = [
            JoinedRow(
                label,
                fetch.arrival(accepted.rows[hop]),
                int(hops.places[hop]),
                hops.traceparents[hop],
            )
            for hop, label in waiting
        ]
        outputs: Sending = defaultdict(list)
        self._joins.send(joined, outputs)
        return Later(outputs, {Counter.LABELS_UNPARKED: len(joined)} if joined else {})


class LabelsPartition(InputPartition[RawFetch]):
    """Reads labels: joined with their event, or parked until it comes."""

    def __init__(self, source: TopicPartition, context: Context) -> None:
        super().__init__(
            source, context, state_topic=topics.POSITIONS.of(context.pipeline), progress=LABELS
        )
        self._index = _label_index(context)
        self._joins = JoinedSender(context, source)

    def read(self, records: Sequence[ConsumerRecord]) -> RawFetch:
        return RawFetch.of(records)

    async def handle(self, fetch: RawFetch, traceparents: Sequence[str | None]) -> Handled:
        records = fetch.records
        outputs: Sending = defaultdict(list)
        rows, ids, known = [], [], []
        for row, (record, intake) in enumerate(zip(records, fetch.intakes.tolist(), strict=True)):
            try:
                label = read_label(record.value or b"")
            except InvalidEvent as error:
                dead_letter(self.context.pipeline, record, error, outputs)
                continue
            rows.append(row)
            ids.append(label.id)
            known.append(KnownLabel(label.label, intake))
        offsets = [records[row].offset for row in rows]
        answers = await retried(
            lambda: self._index.add_labels(ids, offsets, known), what="label index"
        )
        joined = [
            JoinedRow(answer.joined, fetch.arrival(row), records[row].offset, traceparents[row])
            for row, answer in zip(rows, answers, strict=True)
            if answer.joined is not None
        ]
        self._joins.send(joined, outputs)
        for answer in answers:
            self.count(_FATES[answer.fate])
        self.count(Counter.CORRECTIONS, sum(row.joined.version > 1 for row in joined))
        self.count(Counter.LABELS, len(records))
        self.count(Counter.LABELS_DEAD, len(records) - len(rows))
        return Handled(outputs)


@dataclass(frozen=True)
class HopFetch:
    """A fetch of an entity's log: the records that could be read, and the others."""

    sent: Sequence[Sent]
    dead: Sequence[tuple[ConsumerRecord, InvalidEvent]]

    @property
    def traceparents(self) -> Sequence[str | None]:
        return list(chain.from_iterable(sent.hops.traceparents for sent in self.sent))

    @property
    def newest_intake(self) -> int:
        return max((int(sent.hops.intakes.max()) for sent in self.sent), default=0)

    def handed_on(self, traceparents: Sequence[str | None]) -> Iterator[Sent]:
        """The records with other contexts, one a hop in the order of ``traceparents``."""
        first = 0
        for sent in self.sent:
            end = first + len(sent.hops)
            yield sent._replace(hops=replace(sent.hops, traceparents=traceparents[first:end]))
            first = end


class StagePartition(InputPartition[HopFetch]):
    """Folds one entity's events and labels, and hands them on with their values."""

    has_rows = True
    must_be_gapless = True

    def __init__(self, source: TopicPartition, context: Context, entity: str) -> None:
        view = context.view
        super().__init__(
            source,
            context,
            state_topic=topics.STATE.of(context.pipeline, entity, view.definition_hash),
            progress=entity,
        )
        self._stage = Stage(view, entity)
        self._is_first = entity == view.entities[0]
        self._next = dict(pairwise(view.entities)).get(entity)
        settings = context.settings
        self._ids = RecentIds(
            horizon_ms=whole_milliseconds(settings.deduplication_horizon),
            capacity=settings.deduplication_ids,
        )

    def restore_rows(self, rows: dict[str, bytes], ids: dict[int, bytes]) -> None:
        state = self._stage.state
        self._stage.fold.unpack(state, state.intern(list(rows)), list(rows.values()))
        state.take_changed()
        self._ids.restore(ids)

    async def take_history(self, end: int) -> None:
        """What the offline store has kept of the log that all definitions fold."""
        if not self._is_first:
            return
        table = table_path(self.context.settings.offline_store_path, self.context.pipeline, LOG)
        begin = self.marker.position
        async for records in kept_records(table, self.source, begin=begin, end=end):
            self.skip_lost(records[0].offset)
            await self.process(records)

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

    def read(self, records: Sequence[ConsumerRecord]) -> HopFetch:
        sent: list[Sent] = []
        dead: list[tuple[ConsumerRecord, InvalidEvent]] = []
        for record in records:
            try:
                sent.append(self.context.codec.decode(record.value or b"", record.offset))
            except InvalidEvent as error:
                dead.append((record, error))
        return HopFetch(sent, dead)

    async def handle(self, fetch: HopFetch, traceparents: Sequence[str | None]) -> Handled:
        outputs: Sending = defaultdict(list)
        for record, error in fetch.dead:
            dead_letter(self.context.pipeline, record, error, outputs)
            self.count(Counter.FOREIGN)
        new = [self._new(sent) for sent in fetch.handed_on(traceparents)]
        runs = self._stage.pass_through([hops for hops in new if len(hops)])
        parts = [run.events for run in runs if run.events is not None]
        passed = EventHops.joined(parts) if parts else None
        if passed is not None:
            self._account(passed)
        if self._next is not None:
            self._hand_on(runs, self._next, outputs)
        elif passed is not None:
            self._emit(passed, outputs)
        return Handled(outputs)

    def _new(self, sent: Sent) -> Hops:
        """The hops that have not come before: neither sent again, nor under a known event id."""
        hops = sent.hops.where(unseen(sent, self.marker.seen))
        self.count(Counter.REPEATED, len(sent.hops) - len(hops))
        if not self._is_first or isinstance(hops, LabelHops) or not len(hops):
            return hops
        once = hops.where(self._ids.admit(hops.hashes, int(hops.intakes.max())))
        self.count(Counter.DUPLICATE, len(hops) - len(once))
        return once

    def _account(self, passed: EventHops) -> None:
        if self._is_first:
            on_time = int(passed.is_scored.sum())
            self.count(Counter.ON_TIME, on_time)
            self.count(Counter.LATE_MERGED, len(passed) - on_time)
        if not passed.is_replayed:
            self.freshness.folded(passed.columns.times)

    def _hand_on(self, runs: Sequence[Run], entity: str, outputs: Sending) -> None:
        """Send everything to the log of the next entity, in the order of this one."""
        codec, source = self.context.codec, self.source
        onward = outputs[self.context.view.logs[entity]]
        for labels, events in runs:
            for part in labels if self._stage.hands_labels_on else ():
                onward += by_target(
                    part,
                    partition_keys(part.keys_of(entity), part.ids),
                    self.context.partitions,
                    lambda hops: codec.encode_labels(hops, source.topic, source.partition),
                )
            if events is not None:
                onward += by_target(
                    events,
                    partition_keys(events.columns.strings[entity], events.columns.ids),
                    self.context.partitions,
                    lambda hops: codec.encode_onward(hops, source.partition),
                )

    def _emit(self, hops: EventHops, outputs: Sending) -> None:
        batch = vector_batch(self.context.view, hops, partition=self.source.partition)
        stamp = str(int(batch.intakes.max())).encode()
        headers = [(kafka.AVAILABLE_AT, stamp)] if batch.is_replayed else []
        outputs[topics.FEATURES.of(self.context.pipeline)] += [
            Outgoing(None, value, headers, self.source.partition) for value in batch.encode()
        ]


def dead_letter(
    pipeline: str, record: ConsumerRecord, error: InvalidEvent, outputs: Sending
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
