"""Values computed once more from a key's whole history, and compared bit by bit. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from homeostat.common.durations import whole_milliseconds
from homeostat.common.feature_store.reading import STATUS_NAMES, FeatureValue, blank_columns
from homeostat.common.feature_store.views import FeatureView, Vectors
from homeostat.common.windows import Status
from homeostat.common.windows.spec import EDGED
from homeostat.features.enrichment import Stage
from homeostat.features.hops import EventHops, Hops


class Difference(msgspec.Struct, frozen=True):
    """A feature that was served as one thing and folds to another."""

    feature: str
    served: FeatureValue  # null: NaN
    refolded: FeatureValue


@dataclass(frozen=True)
class Served:
    """One vector that somebody got, with the names of its values."""

    features: Sequence[str]
    values: Sequence[float]
    statuses: Sequence[int]

    def of(self, names: Sequence[str]) -> Mapping[str, tuple[float, int]]:
        """The values and statuses of those of ``names`` that the vector has."""
        found = zip(self.features, zip(self.values, self.statuses, strict=True), strict=True)
        return {name: value for name, value in found if name in names}

    def is_dropped(self, view: FeatureView, name: str) -> bool:
        """Whether a value was too old for its pipeline file, and stands for nothing in the log."""
        [(_, status)] = self.of((name,)).values() or [(0.0, Status.MISSING)]
        return status == Status.STALE and view.pipeline.aggregates[name].stale == "missing"


def refolded(
    view: FeatureView,
    entity: str,
    key: str,
    hops: Sequence[Hops],
    *,
    at: int,
    own: EventHops | None,
) -> Mapping[str, tuple[float, int]]:
    """One entity's features at an instant, from ``init``; ``own`` is the event being scored."""
    stage = Stage(view, entity)
    if not stage.fold.uses_labels:
        hops = [part for part in hops if isinstance(part, EventHops)]
    stage.pass_through(hops)
    packed = stage.fold.pack(stage.state, stage.state.intern([key]))[0] if hops else None
    columns = blank_columns(view.pipeline, [at]) if own is None else own.columns
    hashes = np.zeros(1, np.uint64) if own is None else own.hashes
    read = stage.fold.read(
        [packed], [at], view.events(entity, columns, hashes), merge=[own is not None]
    )
    aggregates = view.unanswered(1)
    view.place(aggregates, entity, Vectors(read.values, read.statuses))
    vector = view.finish(columns, aggregates)
    return _named(view, vector, stage.fold.feature_names)


def expressed(view: FeatureView, served: Served, own: EventHops) -> Mapping[str, tuple[float, int]]:
    """The expressions over an event and the aggregates that were served with it.

    Empty if the vector lacks an aggregate.
    """
    known = served.of(view.aggregate_names)
    if len(known) < len(view.aggregate_names):
        return {}
    aggregates = view.unanswered(1)
    for slot, name in enumerate(view.aggregate_names):
        aggregates.values[0, slot], aggregates.statuses[0, slot] = known[name]
    vector = view.finish(own.columns, aggregates)
    return _named(view, vector, tuple(view.pipeline.expressions))


def differences(
    served: Served, computed: Mapping[str, tuple[float, int]], *, known: Sequence[str]
) -> list[Difference]:
    """Where the two differ in a bit, among the features ``known`` to the log.

    A value that was out of reach, which its status said, says nothing about the fold; a stale one
    is what the log says, however old.
    """
    found: list[Difference] = []
    for name, (value, status) in served.of(known).items():
        if name not in computed or status == Status.UNAVAILABLE:
            continue
        right, right_status = computed[name]
        is_same = np.float64(value).tobytes() == np.float64(right).tobytes() or (
            np.isnan(value) and np.isnan(right)
        )
        status = Status.PRESENT if status == Status.STALE else status
        if not is_same or status != right_status:
            found.append(Difference(name, _shown(value, status), _shown(right, right_status)))
    return found


def within(view: FeatureView, entity: str, at: int, begins: int | None) -> tuple[str, ...]:
    """The features of an entity whose windows lie wholly in a log that begins at an instant.

    ``begins`` is ``None`` for a log that has lost nothing. Everything that came before it had
    happened by then, so a window that opens later misses nothing.
    """
    features = view.folds[entity].features
    if begins is None:
        return tuple(feature.name for feature in features)
    return tuple(
        feature.name
        for feature in features
        if feature.window.kind in EDGED
        and feature.window.size is not None
        and at - 2 * whole_milliseconds(feature.window.size) - whole_milliseconds(feature.delay)
        > begins
    )


def _named(
    view: FeatureView, vector: Vectors, names: Sequence[str]
) -> Mapping[str, tuple[float, int]]:
    slots = [(name, view.feature_names.index(name)) for name in names]
    return {
        name: (float(vector.values[0, slot]), int(vector.statuses[0, slot])) for name, slot in slots
    }


def _shown(value: float, status: int) -> FeatureValue:
    return FeatureValue(None if np.isnan(value) else float(value), STATUS_NAMES[status])
