"""The features service: events and labels in; hops, vectors and outcomes out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from homeostat.common import topics
from homeostat.common.durations import whole_milliseconds
from homeostat.common.schemas.labels import read_label
from homeostat.features.deduplication import RecentIds
from homeostat.features.enrichment import Counter, Intake, Stage, vector_batch
from homeostat.features.hops import EventHops, HopCodec, Hops, LabelHops
from homeostat.features.outcomes import Joined, KnownLabel, indexed, joined_hops
from homeostat.features.settings import Settings
from homeostat.sim.label_index import LabelIndex
from homeostat.sim.log import Record
from homeostat.sim.process import Process, World


class Events(Process):
    """Reads raw events: label index, first hop, too late, dead."""

    def __init__(self, world: World, index: LabelIndex) -> None:
        super().__init__(world, {topics.EVENTS.of(world.pipeline.name): self._take})
        self._intake = Intake(world.view, world.contract)
        self._codec = HopCodec(world.view)
        self._index = index

    def _take(self, records: Sequence[Record]) -> None:
        accepted = self._intake.accept(
            [record.value for record in records],
            intakes=np.array([record.available_at for record in records], np.int64),
            places=np.array([record.offset for record in records], np.int64),
            traceparents=[None] * len(records),
            is_replayed=True,
        )
        hops = accepted.hops
        for value in self._codec.encode_events(hops, 0):
            newest = int(hops.intakes.max())
            topic = topics.BY_KEY.of(self.world.pipeline.name)
            self.world.log.append(topic, value, available_at=newest)
        for row, name in enumerate(hops.columns.ids):
            event = indexed(hops.columns, row, self.world.pipeline.key_fields)
            for joined in self._index.add_event(name, event):
                send_joined(self.world, self._codec, joined)
        counts = self.world.counts
        counts[Counter.RECEIVED] += len(records)
        counts[Counter.TOO_LATE] += len(accepted.late)
        counts[Counter.DEAD] += len(accepted.dead)


class Labels(Process):
    """Reads labels: joined with their event, or kept until it comes."""

    def __init__(self, world: World, index: LabelIndex) -> None:
        super().__init__(world, {topics.LABELS.of(world.pipeline.name): self._take})
        self._codec = HopCodec(world.view)
        self._index = index

    def _take(self, records: Sequence[Record]) -> None:
        for record in records:
            label = read_label(record.value)
            known = KnownLabel(label.label, record.available_at)
            if (joined := self._index.add_label(label.id, known)) is not None:
                send_joined(self.world, self._codec, joined)
        self.world.counts[Counter.LABELS] += len(records)


def send_joined(world: World, codec: HopCodec, joined: Joined) -> None:
    """The outcome, and a hop behind its event."""
    name, at = world.pipeline.name, joined.label.available_at
    world.counts[Counter.LABELS_JOINED] += 1
    world.log.append(
        topics.OUTCOMES.of(name),
        joined.outcome(world.view.entities),
        key=joined.id.encode(),
        available_at=at,
    )
    if joined.version > 1:  # a correction changes no state
        return
    hops = joined_hops([joined], fields=world.pipeline.key_fields, places=[0], traceparents=[None])
    for value in codec.encode_labels(hops, topics.LABELS.of(name), 0):
        world.log.append(topics.BY_KEY.of(name), value, available_at=at)


class Entity(Process):
    """Folds one entity's events and labels, and hands the events on with their values."""

    def __init__(self, world: World, entity: str) -> None:
        entities = world.view.entities
        super().__init__(world, {world.view.logs[entity]: self._take})
        self._stage = Stage(world.view, entity)
        self._codec = HopCodec(world.view)
        self._is_first = entity == entities[0]
        self._next = dict(pairwise(entities)).get(entity)
        settings = Settings.model_construct()
        self._ids = RecentIds(
            horizon_ms=whole_milliseconds(settings.deduplication_horizon),
            capacity=settings.deduplication_ids,
        )

    def _take(self, records: Sequence[Record]) -> None:
        batches = [self._once(self._codec.decode(r.value, r.offset).hops) for r in records]
        for labels, events in self._stage.pass_through([hops for hops in batches if len(hops)]):
            if self._next is not None:
                self._send_labels(labels, self._next)
            if events is None:
                continue
            if self._is_first:
                on_time = int(events.is_scored.sum())
                self.world.counts[Counter.ON_TIME] += on_time
                self.world.counts[Counter.LATE_MERGED] += len(events) - on_time
            if self._next is None:
                self._send_vectors(events)
            else:
                self._send_on(events, self._next)

    def _once(self, hops: Hops) -> Hops:
        """Without events whose id has been folded already."""
        if not self._is_first or isinstance(hops, LabelHops):
            return hops
        once = hops.where(self._ids.admit(hops.hashes, int(hops.intakes.max())))
        self.world.counts[Counter.DUPLICATE] += len(hops) - len(once)
        return once

    def _send_labels(self, labels: Sequence[LabelHops], entity: str) -> None:
        log = self.world.view.logs[entity]
        for hops in labels:
            for value in self._codec.encode_labels(hops, self.world.pipeline.name, 0):
                self.world.log.append(log, value, available_at=int(hops.intakes.max()))

    def _send_on(self, passed: EventHops, entity: str) -> None:
        topic = self.world.view.logs[entity]
        for value in self._codec.encode_onward(passed, 0):
            self.world.log.append(topic, value, available_at=int(passed.intakes.max()))

    def _send_vectors(self, passed: EventHops) -> None:
        batch = vector_batch(self.world.view, passed, partition=0)
        topic = topics.FEATURES.of(self.world.pipeline.name)
        for message in batch.encode():
            self.world.log.append(topic, message, available_at=int(batch.intakes.max()))
