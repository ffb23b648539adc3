"""The features service: events and labels in; hops, vectors and outcomes out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from homeostat.common import topics
from homeostat.common.durations import whole_milliseconds
from homeostat.common.feature_store.views import hashes
from homeostat.common.schemas.hops import EventHop
from homeostat.common.schemas.labels import read_label
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
from homeostat.features.outcomes import IndexedEvent, Joined, KnownLabel
from homeostat.features.settings import Settings
from homeostat.sim.label_index import LabelIndex
from homeostat.sim.log import Record
from homeostat.sim.process import Process, World


class Events(Process):
    """Reads raw events: label index, first hop, too late, dead."""

    def __init__(self, world: World, index: LabelIndex) -> None:
        super().__init__(world, {topics.EVENTS.of(world.pipeline.name): self._take})
        self._intake = Intake(world.view, world.contract)
        self._index = index
        self._keys = entity_keys(world.pipeline)
        self._first = world.view.entities[0]
        self._first_topic = topics.BY_ENTITY.of(world.pipeline.name, self._first)

    def _take(self, records: Sequence[Record]) -> None:
        accepted = self._intake.accept(records, [record.available_at for record in records])
        for event in accepted.events:
            keys = self._keys(event)
            self.world.log.append(
                self._first_topic,
                self._intake.hop(event),
                key=record_key(keys.get(self._first), event.id),
                available_at=event.intake,
            )
            for joined in self._index.add_event(event.id, IndexedEvent(event.time, keys)):
                send_joined(self.world, joined)
        counts = self.world.counts
        counts[Counter.RECEIVED] += len(records)
        counts[Counter.TOO_LATE] += len(accepted.late)
        counts[Counter.DEAD] += len(accepted.dead)


class Labels(Process):
    """Reads labels: joined with their event, or kept until it comes."""

    def __init__(self, world: World, index: LabelIndex) -> None:
        super().__init__(world, {topics.LABELS.of(world.pipeline.name): self._take})
        self._index = index

    def _take(self, records: Sequence[Record]) -> None:
        for record in records:
            label = read_label(record.value)
            known = KnownLabel(label.label, record.available_at)
            if (joined := self._index.add_label(label.id, known)) is not None:
                send_joined(self.world, joined)
        self.world.counts[Counter.LABELS] += len(records)


def send_joined(world: World, joined: Joined) -> None:
    """The outcome, and hops to the entities that fold labels."""
    name, at = world.pipeline.name, joined.label.available_at
    world.counts[Counter.LABELS_JOINED] += 1
    world.log.append(
        topics.OUTCOMES.of(name), joined.outcome(), key=joined.id.encode(), available_at=at
    )
    folding = [entity for entity in world.view.entities if world.view.folds[entity].uses_labels]
    for entity, (key, hop) in joined.hops(folding).items():
        world.log.append(topics.BY_ENTITY.of(name, entity), hop, key=key.encode(), available_at=at)


class Entity(Process):
    """Folds one entity's events and labels, and hands the events on with their values."""

    def __init__(self, world: World, entity: str) -> None:
        name, entities = world.pipeline.name, world.view.entities
        super().__init__(world, {topics.BY_ENTITY.of(name, entity): self._take})
        self._stage = Stage(world.view, entity, world.contract)
        self._is_first = entity == entities[0]
        self._next = dict(pairwise(entities)).get(entity)
        settings = Settings.model_construct()
        self._ids = RecentIds(
            horizon_ms=whole_milliseconds(settings.deduplication_horizon),
            capacity=settings.deduplication_ids,
        )

    def _take(self, records: Sequence[Record]) -> None:
        decoded = self._stage.decode(records)
        rows, hops, labels = _sorted(records, decoded)
        if self._is_first and rows:
            rows, hops = self._once(rows, hops)
        passed = self._stage.pass_through(
            rows, hops, [decoded.payloads[row] for row in rows], labels
        )
        if not len(passed):
            return
        if self._is_first:
            on_time = sum(hop.is_scored for hop in hops)
            self.world.counts[Counter.ON_TIME] += on_time
            self.world.counts[Counter.LATE_MERGED] += len(hops) - on_time
        if self._next is None:
            self._send_vectors(passed, records)
        else:
            self._send_on(passed, self._next)

    def _once(self, rows: list[int], hops: list[EventHop]) -> tuple[list[int], list[EventHop]]:
        """Without events whose id has been folded already."""
        now = max(hop.intake for hop in hops)
        is_new = self._ids.admit(hashes([hop.id for hop in hops]), now)
        self.world.counts[Counter.DUPLICATE] += len(hops) - int(is_new.sum())
        kept = np.flatnonzero(is_new).tolist()
        return [rows[index] for index in kept], [hops[index] for index in kept]

    def _send_on(self, passed: Passed, entity: str) -> None:
        topic = topics.BY_ENTITY.of(self.world.pipeline.name, entity)
        keys = passed.columns.strings[entity]
        for key, hop, value in zip(keys, passed.hops, passed.onward(), strict=True):
            self.world.log.append(
                topic, value, key=record_key(key, hop.id), available_at=hop.intake
            )

    def _send_vectors(self, passed: Passed, records: Sequence[Record]) -> None:
        batch = vector_batch(
            self.world.view,
            passed,
            range(len(passed)),
            partition=0,
            records=records,
            traceparents=[None] * len(records),
            is_replayed=True,
        )
        topic = topics.FEATURES.of(self.world.pipeline.name)
        for message in batch.encode():
            self.world.log.append(topic, message, available_at=int(batch.intakes.max()))


def _sorted(
    records: Sequence[Record], decoded: Decoded
) -> tuple[list[int], list[EventHop], list[KeyedLabel]]:
    """Events and labels apart; each keeps its row of the batch."""
    rows: list[int] = []
    hops: list[EventHop] = []
    labels: list[KeyedLabel] = []
    for row, hop in decoded.hops.items():
        if isinstance(hop, EventHop):
            rows.append(row)
            hops.append(hop)
        else:
            labels.append(KeyedLabel(row, records[row].key.decode(), hop))
    return rows, hops, labels
