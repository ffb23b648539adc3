"""An event's way through the entities, as pure steps over batches: accept, fold, hand on.

Nothing here waits or talks to a server. Records come in as they were consumed, what is to be sent
goes out as values, so that the simulator can run the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from homeostat.common.durations import whole_milliseconds
from homeostat.common.errors import InvalidEvent
from homeostat.common.event_columns import event_hashes
from homeostat.common.events import EventContract
from homeostat.common.feature_store.views import FeatureView, Vectors
from homeostat.common.schemas.vectors import VectorBatch
from homeostat.common.windows import EntityFold, State
from homeostat.features.hops import I64, EventHops, Hops, LabelHops


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


@dataclass(frozen=True)
class Accepted:
    """Raw events in three piles, by their row of the batch: ``rows[n]`` has the hop ``n``."""

    hops: EventHops
    rows: list[int]
    late: list[int]
    dead: list[tuple[int, InvalidEvent]]


class Intake:
    """Reads raw events, and shapes the first hop of those that are good and not too late."""

    def __init__(self, view: FeatureView, contract: EventContract) -> None:
        pipeline = view.pipeline
        self._view = view
        self._contract = contract
        self._lateness = whole_milliseconds(pipeline.lateness)
        self._freshness = whole_milliseconds(pipeline.freshness)

    def accept(
        self,
        values: Sequence[bytes],
        *,
        intakes: I64,
        places: I64,
        traceparents: Sequence[str | None],
        is_replayed: bool,
    ) -> Accepted:
        """Read a batch of records, each with its intake (epoch ms) and its place in its log."""
        parsed = self._contract.parse_published_batch(values, intakes.tolist())
        rows = np.array(parsed.rows, np.intp)
        age = intakes[rows] - parsed.columns.times
        is_on_time = age <= self._lateness
        hops = EventHops(
            parsed.columns,
            event_hashes(parsed.columns.ids),
            intakes[rows],
            age <= self._freshness,
            places[rows],
            self._view.unanswered(rows.size),
            [traceparents[row] for row in parsed.rows],
            is_replayed,
        )
        return Accepted(
            hops.where(is_on_time),
            rows[is_on_time].tolist(),
            rows[~is_on_time].tolist(),
            parsed.refused,
        )


def partition_keys(keys: Sequence[str | None], ids: Sequence[str]) -> list[bytes]:
    """The keys by which hops find their partition; a null key spreads by event id."""
    return [(name if key is None else key).encode() for key, name in zip(keys, ids, strict=True)]


def vector_batch(view: FeatureView, hops: EventHops, *, partition: int) -> VectorBatch:
    """Shape events that have passed the last entity as vectors."""
    columns = hops.columns
    vectors = view.finish(columns, hops.aggregates)
    return VectorBatch(
        definition_hash=view.definition_hash,
        features=view.feature_names,
        ids=columns.ids,
        units=[unit or "" for unit in columns.strings[view.pipeline.unit]],
        times=columns.times,
        intakes=hops.intakes,
        values=vectors.values,
        statuses=vectors.statuses,
        is_scored=hops.is_scored,
        entities={name: columns.strings[name] for name in view.entities},
        partition=partition,
        offsets=hops.places,
        traceparents=hops.traceparents,
        is_replayed=hops.is_replayed,
    )


class Run(NamedTuple):
    """Labels, and the events that follow them, of which none is judged by one of them."""

    labels: Sequence[LabelHops]
    events: EventHops | None


class Stage:
    """One entity's fold of one partition: hops in, hops with values out."""

    def __init__(self, view: FeatureView, entity: str) -> None:
        self.fold: EntityFold = view.folds[entity]
        self.state: State = self.fold.new_state()
        self._view = view
        self._entity = entity
        ahead = view.entities[view.entities.index(entity) :]
        self._folding_labels = [name for name in ahead if view.folds[name].uses_labels]
        self.hands_labels_on = any(name != entity for name in self._folding_labels)

    def pass_through(self, batches: Sequence[Hops]) -> list[Run]:
        """Fold events and labels in the order of the log, and give each event its values.

        Labels commute with events of other keys, so that only labels that follow an event of one
        of their own keys, of this entity or of one to come, divide the work. They are left out
        where nobody folds them any more.
        """
        runs: list[Run] = []
        labels: list[LabelHops] = []
        events: list[EventHops] = []
        touched: dict[str, set[str | None]] = {name: set() for name in self._folding_labels}
        for hops in batches:
            if isinstance(hops, EventHops):
                events.append(hops)
                for name, keys in touched.items():
                    keys.update(hops.columns.strings[name])
            elif self._folding_labels:
                if any(_meet(keys, hops.keys_of(name)) for name, keys in touched.items()):
                    runs.append(self._run(labels, events))
                    labels, events = [], []
                    touched = {name: set() for name in self._folding_labels}
                labels.append(hops)
        if labels or events:
            runs.append(self._run(labels, events))
        return runs

    def _run(self, labels: Sequence[LabelHops], events: Sequence[EventHops]) -> Run:
        if self.fold.uses_labels:
            self._fold_labels(labels)
        return Run(labels, self._fold_events(EventHops.joined(events)) if events else None)

    def _fold_events(self, hops: EventHops) -> EventHops:
        if not self.fold.features:  # the source's key, of which nothing is asked
            return hops
        numbers = self.state.intern(hops.columns.strings[self._entity])
        folded = self.fold.fold_events(
            self.state, numbers, self._view.events(self._entity, hops.columns, hops.hashes)
        )
        self._view.place(hops.aggregates, self._entity, Vectors(folded.values, folded.statuses))
        return hops

    def _fold_labels(self, labels: Sequence[LabelHops]) -> None:
        for hops in labels:
            self.fold.fold_labels(
                self.state,
                self.state.intern(hops.keys_of(self._entity)),
                self.fold.labels(hops.times, hops.hashes, hops.labels),
            )


def _meet(touched: set[str | None], keys: Sequence[str | None]) -> bool:
    return any(key is not None and key in touched for key in keys)
