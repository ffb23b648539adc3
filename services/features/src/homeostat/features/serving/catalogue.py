"""The catalogue: every feature of every pipeline, what it is, what it costs and who uses it.

It is made of what is there already: the pipeline files, the announcements of models, and the
progress that each partition keeps beside its rows.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from homeostat.common.durations import format_duration
from homeostat.common.errors import unknown_pipeline
from homeostat.common.feature_store import reading
from homeostat.common.feature_store.online import progress_key
from homeostat.common.feature_store.reading import STATUS_NAMES, Stored, progress_of
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import AggregateSpec, ExpressionSpec
from homeostat.common.schemas.models import VersionState
from homeostat.common.windows import Status


class Announced(msgspec.Struct, frozen=True):
    """What the catalogue needs of an announced model version."""

    pipeline: str
    version: int
    state: VersionState
    features: tuple[str, ...]
    definition_hash: str


class Consumer(msgspec.Struct, frozen=True):
    version: int
    state: VersionState


class Freshness(msgspec.Struct, frozen=True):
    """Since when events are missing: by the partition for which that is longest ago."""

    status: str
    age_seconds: float | None


class EntityEntry(msgspec.Struct, frozen=True):
    definition_hash: str  # of the entity's fold
    bytes_per_entity_bound: int
    freshness: Freshness


class FeatureEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """``consumers``: the model versions that list it; null while they are not known."""

    name: str
    type: str
    consumers: list[Consumer] | None
    description: str | None = None
    entity: str | None = None
    aggregate: str | None = None
    window: str | None = None
    delay: str | None = None
    missing: float | None = None
    expression: str | None = None
    default: float | None = None


class PipelineEntry(msgspec.Struct, frozen=True):
    pipeline: str
    owner: str
    description: str | None
    definition_hash: str
    entities: dict[str, EntityEntry]
    features: list[FeatureEntry]


class Catalogue:
    """``announced`` gives the model versions, or None as long as nobody has told them."""

    def __init__(
        self,
        redis: Redis,
        views: Mapping[str, FeatureView],
        announced: Callable[[], Sequence[Announced] | None],
        *,
        is_informed: Callable[[], bool],
        partitions: int,
        stale_after: timedelta,
    ) -> None:
        self._redis = redis
        self._views = views
        self._announced = announced
        self._is_informed = is_informed
        self._partitions = partitions
        self._stale_after = stale_after

    async def entries(self, pipeline: str | None = None) -> list[PipelineEntry]:
        """All pipelines, or one.

        Raises:
            NotFound: an unknown pipeline.
            TransientError: nothing has been heard of pipelines yet.
        """
        if pipeline is not None and pipeline not in self._views:
            raise unknown_pipeline(pipeline, self._views, is_informed=self._is_informed())
        views = [*self._views.values()] if pipeline is None else [self._views[pipeline]]
        stored = await self._progress(views)
        consumers = self._consumers()
        return [self._entry(view, stored, consumers) for view in views]

    async def _progress(self, views: Sequence[FeatureView]) -> Stored:
        """Nothing while the store is away: the catalogue stands without it."""
        keys = [
            key for view in views for entity in view.entities for key in self._keys(view, entity)
        ]
        try:
            return await reading.fetch(self._redis, keys)
        except (RedisError, OSError):
            return {}

    def _keys(self, view: FeatureView, entity: str) -> list[bytes]:
        return [
            progress_key(view.pipeline.name, view.definition_hash, entity, partition)
            for partition in range(self._partitions)
        ]

    def _consumers(self) -> Mapping[tuple[str, str], list[Consumer]] | None:
        """By pipeline and feature."""
        announced = self._announced()
        if announced is None:
            return None
        found: dict[tuple[str, str], list[Consumer]] = defaultdict(list)
        for each in sorted(announced, key=lambda version: version.version):
            for name in each.features:
                found[each.pipeline, name].append(Consumer(each.version, each.state))
        return found

    def _entry(
        self,
        view: FeatureView,
        stored: Stored,
        consumers: Mapping[tuple[str, str], list[Consumer]] | None,
    ) -> PipelineEntry:
        pipeline = view.pipeline
        return PipelineEntry(
            pipeline=pipeline.name,
            owner=pipeline.owner,
            description=pipeline.description,
            definition_hash=view.definition_hash,
            entities={
                entity: EntityEntry(
                    fold.definition_hash,
                    fold.bytes_per_entity_bound,
                    self._freshness([stored.get(key) for key in self._keys(view, entity)]),
                )
                for entity, fold in view.folds.items()
            },
            features=[
                _feature(
                    name,
                    spec,
                    None if consumers is None else consumers.get((pipeline.name, name), []),
                )
                for name, spec in pipeline.features.items()
            ],
        )

    def _freshness(self, values: Sequence[bytes | None]) -> Freshness:
        written = [
            progress.current_at for value in values if (progress := progress_of(value)) is not None
        ]
        if len(written) < len(values):
            return Freshness(STATUS_NAMES[Status.UNAVAILABLE], None)
        age_seconds = max(0.0, time.time() - min(written) / 1000)
        is_stale = age_seconds > self._stale_after.total_seconds()
        return Freshness(STATUS_NAMES[Status.STALE if is_stale else Status.PRESENT], age_seconds)


def _feature(
    name: str, spec: AggregateSpec | ExpressionSpec, consumers: list[Consumer] | None
) -> FeatureEntry:
    if isinstance(spec, AggregateSpec):
        return FeatureEntry(
            name=name,
            type="float64",
            consumers=consumers,
            description=spec.description,
            entity=spec.entity,
            aggregate=spec.aggregate,
            window=spec.window,
            delay=format_duration(spec.delay) if spec.delay else None,
            missing=spec.missing,
        )
    return FeatureEntry(
        name=name,
        type="float64",
        consumers=consumers,
        description=spec.description,
        expression=spec.expression,
        default=spec.default,
    )
