"""The read behind every edge: entity keys in, values and statuses of features out.

One call is one round trip to the online store, whatever the number of entities, features and
pipelines. No event comes with the keys, so an expression over an event's fields is null.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from redis.asyncio import Redis
from redis.exceptions import RedisError

from homeostat.common.errors import InvalidInput, TransientError, Violation, unknown_names
from homeostat.common.events import (
    entity_key_violations,
    unusable_entity_keys,
)
from homeostat.common.feature_store import reading
from homeostat.common.feature_store.online import newest_event_time
from homeostat.common.feature_store.reading import (
    Lookup,
    OnlineAnswer,
    OnlineRows,
    Places,
    Stored,
    blank_columns,
)
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.instants import MAX_MILLIS, MIN_MILLIS
from homeostat.features.serving import metrics

logger = logging.getLogger(__name__)

MAX_TOLD_ROWS = 20

Keys = Mapping[str, Sequence[str | None]]  # by entity


@dataclass(frozen=True)
class FeatureRead:
    """What is asked of one pipeline: rows of entity keys, at an instant (epoch ms)."""

    view: FeatureView
    keys: Keys
    count: int  # of rows
    features: tuple[str, ...]
    at: int


@dataclass(frozen=True)
class FeatureTable:
    """``values[n, f]`` (NaN: null) and ``statuses[n, f]`` of the features that were asked for.

    ``event_times`` are those of each entity's newest event, epoch ms; None where none is known.
    """

    read: FeatureRead
    values: NDArray[np.float64]
    statuses: NDArray[np.uint8]
    event_times: Mapping[str, Sequence[int | None]]


class FeatureReader:
    """``views`` finds a pipeline's view by name; it raises what unknown pipelines are told with."""

    def __init__(
        self,
        redis: Redis,
        online: OnlineRows,
        views: Callable[[str], FeatureView],
        *,
        max_rows: int,
    ) -> None:
        self._redis = redis
        self._online = online
        self._max_rows = max_rows
        self.view = views

    def check_count(self, rows: int) -> None:
        """
        Raises:
            InvalidInput: more rows than one request may bring.
        """
        if rows > self._max_rows:
            raise InvalidInput(
                f"{rows} rows in one request", fix=f"send at most {self._max_rows} at a time"
            )

    def asked(
        self,
        view: FeatureView,
        entities: Sequence[Mapping[str, str]],
        *,
        features: Sequence[str] = (),
        at: int | None = None,
    ) -> FeatureRead:
        """A read of rows of entity keys; no features: all; no instant: now.

        Raises:
            InvalidInput: keys that no event could have, unknown features, too many rows.
        """
        self.check_count(len(entities))
        _check_rows(entities, view.entities)
        check_features(features, view.feature_names)
        return FeatureRead(
            view=view,
            keys={entity: [row.get(entity) for row in entities] for entity in view.entities},
            count=len(entities),
            features=tuple(dict.fromkeys(features)) or view.feature_names,
            at=now_millis() if at is None else at,
        )

    async def read(self, reads: Sequence[FeatureRead]) -> list[FeatureTable]:
        """The answers, in order, from one round trip.

        Raises:
            TransientError: the online store is away.
        """
        with metrics.READ_SECONDS.time():
            lookups = [_lookup(read) for read in reads]
            places = [self._online.places(lookup) for lookup in lookups]
            stored = await self._fetch(places)
            tables = [
                _table(read, self._online.evaluate(lookup, where, stored), where, stored)
                for read, lookup, where in zip(reads, lookups, places, strict=True)
            ]
        for read in reads:
            metrics.READ_ROWS.labels(read.view.pipeline.name).inc(read.count)
        return tables

    async def _fetch(self, places: Iterable[Places]) -> Stored:
        try:
            return await reading.fetch(self._redis, reading.wanted(places))
        except (RedisError, OSError) as error:
            metrics.READ_FAILURES.inc()
            logger.warning("online store unavailable", extra={"error": repr(error)})
            raise TransientError("the online store is away", retry_after_seconds=1) from error


def now_millis() -> int:
    return time.time_ns() // 1_000_000


def check_features(names: Iterable[str], known: Sequence[str]) -> None:
    """
    Raises:
        InvalidInput: with the nearest name of each that is not known.
    """
    if violations := unknown_names(names, known, what="no such feature", where="features."):
        raise InvalidInput("a feature is not known", violations=violations)


def _check_rows(entities: Sequence[Mapping[str, str]], known: Sequence[str]) -> None:
    violations: list[Violation] = []
    for number, keys in enumerate(entities):
        where = f"entities[{number}]"
        if not keys:
            violations.append(Violation(where, "no entity key"))
        violations += entity_key_violations(keys, known, where=where)
        if len(violations) >= MAX_TOLD_ROWS:
            break
    if violations:
        raise unusable_entity_keys(known, violations[:MAX_TOLD_ROWS])


def _lookup(read: FeatureRead) -> Lookup:
    return Lookup(
        view=read.view,
        columns=blank_columns(read.view.pipeline, [read.at] * read.count),
        keys=read.keys,
        is_event=np.zeros(read.count, np.bool_),
    )


def _table(read: FeatureRead, answer: OnlineAnswer, places: Places, stored: Stored) -> FeatureTable:
    order = [read.view.feature_names.index(name) for name in read.features]
    return FeatureTable(
        read=read,
        values=answer.vectors.values[:, order],
        statuses=answer.vectors.statuses[:, order],
        event_times={
            entity: [
                None if place is None or lost else _newest(stored[place.row])
                for place, lost in zip(column, answer.is_lost[entity].tolist(), strict=True)
            ]
            for entity, column in places.items()
        },
    )


def _newest(row: bytes | None) -> int | None:
    if not row:
        return None
    time = newest_event_time(row)
    return time if MIN_MILLIS <= time <= MAX_MILLIS else None
