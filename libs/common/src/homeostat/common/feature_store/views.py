"""The feature view of a pipeline: its folds and expressions, compiled once, in the model's order.

Everything that turns events into a model's input goes through here: the stream, the online read,
the training set and the simulator. So the same event gives the same bits wherever it is computed.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from homeostat.common import topics
from homeostat.common.errors import Violation
from homeostat.common.event_columns import EventColumns, event_hash, recoded
from homeostat.common.expressions import Expression, compile_expression
from homeostat.common.pipeline import AggregateSpec, FieldSpec, FieldType, Pipeline
from homeostat.common.pipeline.references import expression_names
from homeostat.common.windows import (
    Absent,
    AggregateFeature,
    EntityFold,
    Events,
    Status,
    parse_aggregate,
    parse_window,
)


class Vectors(NamedTuple):
    """``values[n, f]`` as the model takes them (NaN: null), ``statuses[n, f]``, in model order."""

    values: NDArray[np.float64]
    statuses: NDArray[np.uint8]


class FeatureView:
    """What a pipeline's features are, and how they come from events and entity state.

    ``feature_names`` is the model's order; ``aggregate_names`` the order of the aggregates among
    themselves, in which values travel from entity to entity.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.entities = pipeline.entities
        self.feature_names = tuple(pipeline.features)
        self.aggregate_names = tuple(pipeline.aggregates)
        self.folds: Mapping[str, EntityFold] = {
            entity: _fold(pipeline, entity) for entity in self.entities
        }
        self._slots = {
            entity: np.array(
                [self.aggregate_names.index(name) for name in fold.feature_names], np.intp
            )
            for entity, fold in self.folds.items()
        }
        self._missing = {
            name: spec.missing
            for name, spec in pipeline.aggregates.items()
            if spec.missing is not None
        }
        self.stale_as_missing = {
            entity: np.array(
                [pipeline.aggregates[name].stale == "missing" for name in fold.feature_names],
                np.bool_,
            )
            for entity, fold in self.folds.items()
        }
        self._refusing = {
            name: [Status[status.upper()] for status in spec.refuse]
            for name, spec in pipeline.aggregates.items()
            if spec.refuse
        }
        names = expression_names(pipeline)
        self._expressions: Mapping[str, tuple[Expression, float | None]] = {
            name: (compile_expression(spec.expression, names), spec.default)
            for name, spec in pipeline.expressions.items()
        }
        self._columns = {
            name: _column_reader(name, pipeline.fields[name])
            for fold in self.folds.values()
            for name in fold.fields
        }
        self.definition_hash = self._hash()

    def events(self, entity: str, events: EventColumns, ids: NDArray[np.uint64]) -> Events:
        """The events as one entity's fold takes them; ``ids`` are the hashes of their ids."""
        fold = self.folds[entity]
        columns = {name: self._columns[name](events) for name in fold.fields}
        return fold.events(events.times, ids, columns)

    def conformed(self, events: EventColumns, read_as: Pipeline) -> EventColumns:
        """Events that were read by the contract of another generation, as this one's.

        A field that they lack, or that was of another kind, is null; categories go by their names.
        """
        if read_as is self.pipeline:
            return events
        fields, blank = self.pipeline.published_fields, [None] * len(events)
        return EventColumns(
            events.ids,
            events.times,
            {
                name: events.strings.get(name) or [*blank]
                for name, spec in fields.items()
                if spec.type is FieldType.STRING
            },
            {
                name: self._conformed(name, spec, events, read_as.fields.get(name))
                for name, spec in fields.items()
                if spec.type is not FieldType.STRING
            },
        )

    @staticmethod
    def _conformed(
        name: str, now: FieldSpec, events: EventColumns, was: FieldSpec | None
    ) -> NDArray[np.float64]:
        is_category = now.type is FieldType.CATEGORY
        if (
            was is None
            or name not in events.numbers
            or is_category != (was.type is FieldType.CATEGORY)
        ):
            return np.full(len(events), np.nan)
        column = events.numbers[name]
        return recoded(column, was.values or (), now.values or ()) if is_category else column

    def unanswered(self, count: int) -> Vectors:
        """Aggregates of ``count`` events before any entity has answered: all missing."""
        shape = (count, len(self.aggregate_names))
        return Vectors(np.full(shape, np.nan), np.full(shape, Status.MISSING, np.uint8))

    def place(self, aggregates: Vectors, entity: str, answer: Vectors) -> None:
        """Write one entity's answer (in its fold's order) into its slots, in place."""
        slots = self._slots[entity]
        aggregates.values[:, slots] = answer.values
        aggregates.statuses[:, slots] = answer.statuses

    def finish(self, events: EventColumns, aggregates: Vectors) -> Vectors:
        """The whole vector: aggregates with their stand-ins, then expressions, in model order.

        A stand-in (``missing``, ``default``) changes the value and leaves the status: the model
        gets the declared encoding, people can still tell.
        """
        columns: dict[str, NDArray[np.float64]] = {
            "event_time": events.times.astype(np.float64),
            **events.numbers,
        }
        statuses: dict[str, NDArray[np.uint8]] = {}
        for index, name in enumerate(self.aggregate_names):
            columns[name] = _stand_in(aggregates.values[:, index], self._missing.get(name))
            statuses[name] = aggregates.statuses[:, index]
        for name, (expression, default) in self._expressions.items():
            value = expression.evaluate(columns)
            statuses[name] = np.where(np.isnan(value), Status.NULL, Status.PRESENT).astype(np.uint8)
            columns[name] = _stand_in(value, default)
        shape = (len(events), len(self.feature_names))
        vectors = Vectors(np.empty(shape, np.float64), np.empty(shape, np.uint8))
        for index, name in enumerate(self.feature_names):
            vectors.values[:, index] = columns[name]
            vectors.statuses[:, index] = statuses[name]
        return vectors

    @cached_property
    def logs(self) -> Mapping[str, str]:
        """The topic that each entity's state is a fold of."""
        pipeline = self.pipeline
        return {
            entity: topics.log_of(
                pipeline.name,
                entity,
                self.definition_hash,
                is_key=entity == pipeline.source.key,
            )
            for entity in self.entities
        }

    def refused(
        self, statuses: NDArray[np.uint8], used: Sequence[str]
    ) -> Mapping[int, Sequence[Violation]]:
        """The rows of ``statuses[n, f]`` (in the order of ``used``) that must not be scored."""
        found: dict[int, list[Violation]] = defaultdict(list)
        for name, refusing in self._refusing.items():
            if name not in used:
                continue
            column = statuses[:, used.index(name)]
            for row in np.flatnonzero(np.isin(column, refusing)).tolist():
                status = Status(column[row]).name.lower()
                found[row].append(Violation(f"features.{name}", f"is {status}"))
        return found

    def _hash(self) -> str:
        """Identity of the whole definition: folds, the fields they read, expressions.

        What is done about a status changes no value that is folded.
        """
        pipeline = self.pipeline
        definition = {
            "folds": {entity: fold.definition_hash for entity, fold in self.folds.items()},
            "features": {
                name: spec.model_dump(mode="json", exclude={"description", "stale", "refuse"})
                for name, spec in pipeline.features.items()
            },
            "order": self.feature_names,
            "categories": {
                name: spec.values
                for name, spec in pipeline.fields.items()
                if spec.type is FieldType.CATEGORY
            },
        }
        return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()


def _column_reader(name: str, spec: FieldSpec) -> Callable[[EventColumns], NDArray[Any]]:
    """How a field of events comes to a fold: as numbers, or as the hashes of texts, 0 for null."""
    if spec.type is FieldType.CATEGORY:
        known = np.array([*map(event_hash, spec.values or ()), 0], np.uint64)
        return lambda events: known[np.nan_to_num(events.numbers[name], nan=-1).astype(np.intp)]
    if spec.type is FieldType.STRING:
        return lambda events: np.array(
            [0 if text is None else event_hash(text) for text in events.strings[name]], np.uint64
        )
    return lambda events: events.numbers[name]


def _fold(pipeline: Pipeline, entity: str) -> EntityFold:
    features = [
        _feature(name, spec) for name, spec in pipeline.aggregates.items() if spec.entity == entity
    ]
    scales = {name: spec.scale for name, spec in pipeline.fields.items() if spec.scale is not None}
    texts = {name for name, spec in pipeline.fields.items() if not spec.type.is_numeric}
    absent = Absent.DROP if pipeline.source.label.absent == "drop" else Absent.ZERO
    return EntityFold(
        entity, features, scales=scales, texts=texts, lateness=pipeline.lateness, absent=absent
    )


def _feature(name: str, spec: AggregateSpec) -> AggregateFeature:
    return AggregateFeature(
        name, parse_aggregate(spec.aggregate), parse_window(spec.window), spec.delay
    )


def _stand_in(values: NDArray[np.float64], stand_in: float | None) -> NDArray[np.float64]:
    return values if stand_in is None else np.where(np.isnan(values), stand_in, values)
