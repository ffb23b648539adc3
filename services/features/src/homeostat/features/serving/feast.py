"""Feast's feature server, as its remote online store asks it: whole columns, a status a value.

A view is ``<pipeline>``, with all features of a pipeline, or ``<pipeline>__<entity>``, with the
aggregates of one entity; a feature service is ``<pipeline>``. Join keys are called as the entities
are. Feast's SDK keeps no status beside a value, so whatever is not present is null.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple

import msgspec
from fastapi import APIRouter, Request, Response

from homeostat.common.clock import from_millis
from homeostat.common.errors import (
    MAX_TOLD_NAME,
    MAX_TOLD_NAMES,
    Forbidden,
    InvalidInput,
    NotFound,
    Violation,
    did_you_mean,
    unknown_names,
)
from homeostat.common.events import text_violations
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import AggregateSpec
from homeostat.common.windows import Status
from homeostat.features.serving.api import as_json, body_of, decoded
from homeostat.features.serving.reading import (
    FeatureRead,
    FeatureReader,
    FeatureTable,
    check_features,
    now_millis,
)

SEPARATOR = "__"  # a pipeline's name has no underscore
NO_TIME = datetime(1970, 1, 1, tzinfo=UTC)  # what Feast writes where there is none

Key = str | int | None


class FieldStatus(StrEnum):
    PRESENT = "PRESENT"
    NULL_VALUE = "NULL_VALUE"
    NOT_FOUND = "NOT_FOUND"
    OUTSIDE_MAX_AGE = "OUTSIDE_MAX_AGE"
    INVALID = "INVALID"  # it cannot be told what the value is


STATUSES = {
    Status.PRESENT: FieldStatus.PRESENT,
    Status.NULL: FieldStatus.NULL_VALUE,
    Status.MISSING: FieldStatus.NOT_FOUND,
    Status.STALE: FieldStatus.OUTSIDE_MAX_AGE,
    Status.UNAVAILABLE: FieldStatus.INVALID,
}


class OnlineRequest(msgspec.Struct, frozen=True):
    entities: dict[str, list[Key]]
    features: list[str] = []
    feature_service: str | None = None
    full_feature_names: bool = False


class FeatureNames(msgspec.Struct, frozen=True):
    feature_names: list[str]


class Column(msgspec.Struct, frozen=True):
    values: Sequence[Key | float]
    statuses: Sequence[FieldStatus]
    event_timestamps: Sequence[datetime]


class OnlineAnswer(msgspec.Struct, frozen=True):
    metadata: FeatureNames
    results: list[Column]


class Reference(NamedTuple):
    """One feature as it was asked for."""

    view_name: str
    feature: str
    view: FeatureView


_decode = msgspec.json.Decoder(OnlineRequest, strict=True).decode


def routes(reader: Callable[[], FeatureReader]) -> APIRouter:
    router = APIRouter(tags=["feast"])

    @router.post(
        "/get-online-features",
        summary="What Feast's remote online store asks",
        openapi_extra={"requestBody": {"content": {"application/json": {}}, "required": True}},
    )
    async def get_online_features(request: Request) -> Response:
        asked: OnlineRequest = decoded(_decode, await body_of(request))
        return as_json(await answer(asked, reader()))

    @router.get("/health", summary="What Feast's clients ask: the server answers")
    async def health() -> Response:
        return Response()

    @router.post("/push", summary="Refused: features come from events")
    @router.post("/write-to-online-store", summary="Refused: features come from events")
    async def write() -> None:
        raise Forbidden(
            "features are folded from events, nobody writes their values",
            fix="send the events to the ingest service: POST /v1/pipelines/{pipeline}/events",
        )

    return router


async def answer(asked: OnlineRequest, reader: FeatureReader) -> OnlineAnswer:
    """Everything that was asked, whatever the number of views, in one read.

    Raises:
        NotFound: an unknown view or service.
        InvalidInput: unknown features or join keys, keys that no event could have.
        TransientError: the online store is away.
    """
    count = _count(asked.entities)
    reader.check_count(count)
    references = _references(asked, reader)
    views = {reference.view.pipeline.name: reference.view for reference in references}
    keys = _keys(asked.entities, references)
    at = now_millis()
    reads = [
        FeatureRead(
            view=view,
            keys={entity: keys.get(entity, [None] * count) for entity in view.entities},
            count=count,
            features=tuple(dict.fromkeys(r.feature for r in references if r.view is view)),
            at=at,
        )
        for view in views.values()
    ]
    tables = dict(zip(views, await reader.read(reads), strict=True))
    columns = [_feature_column(r, tables[r.view.pipeline.name]) for r in references]
    return OnlineAnswer(
        FeatureNames([*asked.entities, *_names(references, is_full=asked.full_feature_names)]),
        [*map(_key_column, asked.entities.values()), *columns],
    )


def _count(entities: Mapping[str, Sequence[Key]]) -> int:
    counts = {len(keys) for keys in entities.values()}
    if len(counts) != 1:
        raise InvalidInput(
            "the columns of join keys are not of one length"
            if counts
            else "there are no join keys",
            violations=[
                Violation(f"entities.{name[:MAX_TOLD_NAME]}", f"{len(keys)} keys")
                for name, keys in [*entities.items()][:MAX_TOLD_NAMES]
            ],
        )
    return counts.pop()


def _references(asked: OnlineRequest, reader: FeatureReader) -> list[Reference]:
    if asked.feature_service is not None:
        view = reader.view(asked.feature_service)
        return [Reference(view.pipeline.name, name, view) for name in view.feature_names]
    if not asked.features:
        raise InvalidInput(
            "no features are asked for",
            fix='give features: ["<view>:<feature>"], or feature_service',
        )
    named = [_split(reference) for reference in dict.fromkeys(asked.features)]
    by_view: dict[str, list[str]] = {}
    for name, feature in named:
        by_view.setdefault(name, []).append(feature)
    views = {name: _view(name, features, reader) for name, features in by_view.items()}
    return [Reference(name, feature, views[name]) for name, feature in named]


def _split(reference: str) -> tuple[str, str]:
    name, separator, feature = reference.partition(":")
    if not separator:
        raise InvalidInput(
            "a feature is asked for as <view>:<feature>",
            violations=[Violation("features", f"{reference[:MAX_TOLD_NAME]!r} names no view")],
        )
    return name, feature


def _view(name: str, features: Iterable[str], reader: FeatureReader) -> FeatureView:
    """The view called so, once it is sure to have the features."""
    pipeline, separator, entity = name.partition(SEPARATOR)
    view = reader.view(pipeline)
    known: Sequence[str] = view.feature_names
    if separator:
        if entity not in view.entities:
            raise NotFound(
                f"pipeline {pipeline!r} has no entity {entity[:MAX_TOLD_NAME]!r}",
                fix=did_you_mean(entity, view.entities),
            )
        known = view.folds[entity].feature_names
    check_features(features, known)
    return view


def _keys(
    entities: Mapping[str, Sequence[Key]], references: Sequence[Reference]
) -> dict[str, list[str | None]]:
    """The join keys as keys of events.

    Raises:
        InvalidInput: unknown or missing join keys, or keys that no event could have.
    """
    known = dict.fromkeys(entity for r in references for entity in r.view.entities)
    violations = unknown_names(entities, known, what="no such join key", where="entities.")
    needed = dict.fromkeys(
        spec.entity
        for r in references
        if isinstance(spec := r.view.pipeline.features[r.feature], AggregateSpec)
    )
    violations += [
        Violation(f"entities.{name}", "missing") for name in needed if name not in entities
    ]
    keys = {
        name: [None if key is None else str(key) for key in column]
        for name, column in entities.items()
    }
    for name, column in keys.items():
        for number, key in enumerate(column):
            if key is not None and len(violations) < MAX_TOLD_NAMES:
                violations += text_violations(f"entities.{name}[{number}]", key, is_id=True)
    if violations:
        raise InvalidInput("the join keys cannot be used", violations=violations)
    return keys


def _names(references: Iterable[Reference], *, is_full: bool) -> list[str]:
    if is_full:
        return [f"{r.view_name}{SEPARATOR}{r.feature}" for r in references]
    return [r.feature for r in references]


def _key_column(keys: Sequence[Key]) -> Column:
    return Column(
        keys,
        [FieldStatus.NULL_VALUE if key is None else FieldStatus.PRESENT for key in keys],
        [NO_TIME] * len(keys),
    )


def _feature_column(reference: Reference, table: FeatureTable) -> Column:
    number = table.read.features.index(reference.feature)
    statuses = [STATUSES[Status(code)] for code in table.statuses[:, number].tolist()]
    spec = reference.view.pipeline.features[reference.feature]
    times: Sequence[int | None] = [None] * len(statuses)
    if isinstance(spec, AggregateSpec):
        times = table.event_times[spec.entity]
    return Column(
        [
            value if status is FieldStatus.PRESENT else None
            for value, status in zip(table.values[:, number].tolist(), statuses, strict=True)
        ],
        statuses,
        [NO_TIME if time is None else from_millis(time) for time in times],
    )
