"""The online read: entity rows from Redis, the event being scored merged once, evaluated at its
time.

The store may be behind, or hold a row that nobody can read. Neither fails a request: what is out of
reach gets the status ``unavailable`` and the encoding that models are trained with, and the answer
tells which rows are degraded. What a store that is away means, the caller decides.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from homeostat.common.event_columns import EventColumns, event_hashes
from homeostat.common.feature_store import online
from homeostat.common.feature_store.online import Progress
from homeostat.common.feature_store.views import FeatureView, Vectors
from homeostat.common.kafka import partition_of
from homeostat.common.pipeline import FieldType, Pii, Pipeline
from homeostat.common.windows import Status, UnreadableRow

logger = logging.getLogger(__name__)

UNKNOWN_OFFSET = -1
KNOWN_KEYS = 100_000  # whose partition is remembered
STATUS_NAMES = tuple(status.name.lower() for status in Status)

I64 = np.ndarray[tuple[int], np.dtype[np.int64]]
Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]


class FeatureValue(msgspec.Struct, frozen=True):
    """A value as an answer shows it, with the name of its status."""

    value: float | None
    status: str


@dataclass(frozen=True)
class Lookup:
    """Rows of one view to be read together, each evaluated at its time in ``columns``."""

    view: FeatureView
    columns: EventColumns
    keys: Mapping[str, Sequence[str | None]]  # by entity
    is_event: Mask  # false: the row brings no event, and its columns are blank

    def __len__(self) -> int:
        return len(self.columns)


class Place(NamedTuple):
    """Where an entity's row lies in the store, and the progress of the partition that writes it."""

    row: bytes
    progress: bytes


Places = Mapping[str, Sequence[Place | None]]  # by entity
Stored = Mapping[bytes, bytes | None]


@dataclass(frozen=True)
class OnlineAnswer:
    """What a lookup found. An entity's row is lost if nobody can tell what stands in it."""

    vectors: Vectors
    ages_ms: I64  # of the oldest state that each row was read from
    is_lost: Mapping[str, Mask]  # by entity
    offsets: Mapping[str, I64]  # by entity: of its log, all below is in the row; -1: unknown

    @property
    def is_degraded(self) -> Mask:
        """Rows that lack what the store may know: an entity is lost, or a value out of reach."""
        degraded: Mask = (self.vectors.statuses == Status.UNAVAILABLE).any(axis=1)
        for lost in self.is_lost.values():
            degraded |= lost
        return degraded


class OnlineRows:
    """Knows where the rows of entity keys lie, and what they say."""

    def __init__(
        self,
        *,
        partitions: int,
        stale_after: timedelta,
        wall_millis: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        # The hash costs 10 µs a key, and keys come back.
        self._partition = lru_cache(KNOWN_KEYS)(lambda key: partition_of(key.encode(), partitions))
        self._stale_after_ms = round(stale_after.total_seconds() * 1000)
        self._wall_millis = wall_millis

    def places(self, lookup: Lookup) -> Places:
        name, definition = lookup.view.pipeline.name, lookup.view.definition_hash
        return {
            entity: [
                None
                if key is None
                else Place(
                    online.row_key(name, definition, entity, key),
                    online.progress_key(name, definition, entity, self._partition(key)),
                )
                for key in keys
            ]
            for entity, keys in lookup.keys.items()
        }

    def evaluate(self, lookup: Lookup, places: Places, stored: Stored) -> OnlineAnswer:
        """What the store knows, entity by entity, and the expressions over it."""
        aggregates = lookup.view.unanswered(len(lookup))
        oldest_ms = np.zeros(len(lookup), np.int64)
        is_lost: dict[str, Mask] = {}
        offsets: dict[str, I64] = {}
        now = self._wall_millis()
        for entity, column in places.items():
            packed = [None if place is None else stored[place.row] for place in column]
            values, statuses, is_readable = _read(lookup, entity, packed)
            ages, offsets[entity] = _progress(column, stored, now=now)
            stale = (ages > self._stale_after_ms)[:, None]
            statuses[stale & (statuses == Status.PRESENT)] = Status.STALE
            values[stale & lookup.view.stale_as_missing[entity]] = np.nan
            # Events that are not folded yet may have made it known since.
            statuses[stale & (statuses == Status.MISSING)] = Status.UNAVAILABLE
            lost = is_lost[entity] = ~(is_readable & (offsets[entity] != UNKNOWN_OFFSET))
            values[lost], statuses[lost] = np.nan, Status.UNAVAILABLE
            lookup.view.place(aggregates, entity, Vectors(values, statuses))
            np.maximum(oldest_ms, ages, out=oldest_ms)
        vectors = lookup.view.finish(lookup.columns, aggregates)
        return OnlineAnswer(vectors, oldest_ms, is_lost, offsets)


def open_redis(url: str, *, timeout: timedelta, connections: int) -> Redis:
    """A client for reads: redis-py would retry three times, and its caller knows better."""
    seconds = timeout.total_seconds()
    pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
        url,
        socket_timeout=seconds,
        socket_connect_timeout=seconds,
        max_connections=connections,
        timeout=seconds,  # for a connection, when all are in use
        retry=Retry(NoBackoff(), 0),
    )
    return Redis.from_pool(pool)


def wanted(lookups: Iterable[Places]) -> list[bytes]:
    """The keys to fetch for some lookups, each once."""
    return [
        *dict.fromkeys(
            key
            for places in lookups
            for column in places.values()
            for place in column
            if place is not None
            for key in place
        )
    ]


async def fetch(redis: Redis, keys: Sequence[bytes]) -> Stored:
    """The values of keys, in one round trip.

    Raises:
        RedisError, OSError: the store is away.
    """
    values = await redis.mget(keys) if keys else []
    return {
        key: value if isinstance(value, bytes) else None
        for key, value in zip(keys, values, strict=True)
    }


def progress_of(value: bytes | None) -> Progress | None:
    """The progress that a key holds; ``None`` also if it is damaged, which is logged."""
    if value is None:
        return None
    try:
        return online.decode_progress(value)
    except msgspec.DecodeError:
        logger.error("a progress record of the online store is damaged")
        return None


def unavailable(lookup: Lookup) -> OnlineAnswer:
    """Without a store: nothing that comes from it, while expressions over the event still hold."""
    aggregates = lookup.view.unanswered(len(lookup))
    aggregates.statuses[:] = Status.UNAVAILABLE
    return OnlineAnswer(
        lookup.view.finish(lookup.columns, aggregates),
        np.zeros(len(lookup), np.int64),
        dict.fromkeys(lookup.view.entities, np.ones(len(lookup), np.bool_)),
        dict.fromkeys(lookup.view.entities, np.full(len(lookup), UNKNOWN_OFFSET)),
    )


def blank_columns(pipeline: Pipeline, times: Sequence[int]) -> EventColumns:
    """Columns of rows that bring no event: every field is null."""
    count = len(times)
    names = {name: spec for name, spec in pipeline.fields.items() if spec.pii is not Pii.DROP}
    return EventColumns(
        ids=[""] * count,
        times=np.array(times, np.int64),
        strings={
            name: [None] * count for name, spec in names.items() if spec.type is FieldType.STRING
        },
        numbers={
            name: np.full(count, np.nan)
            for name, spec in names.items()
            if spec.type is not FieldType.STRING
        },
    )


def shown(names: Iterable[str], values: F64, statuses: U8) -> dict[str, FeatureValue]:
    """One row's values by name, as every answer shows them."""
    return {
        name: FeatureValue(value, STATUS_NAMES[status])
        for name, value, status in zip(names, values.tolist(), statuses.tolist(), strict=True)
    }


def _progress(column: Sequence[Place | None], stored: Stored, *, now: int) -> tuple[I64, I64]:
    """How long ago (ms) each row's partition last wrote, and up to where; 0 without a key."""
    ages, offsets = np.zeros(len(column), np.int64), np.zeros(len(column), np.int64)
    for number, place in enumerate(column):
        if place is None:
            continue
        progress = progress_of(stored[place.progress])
        if progress is None:
            offsets[number] = UNKNOWN_OFFSET
        else:
            ages[number] = max(0, now - progress.current_at)
            offsets[number] = progress.offset
    return ages, offsets


def _read(lookup: Lookup, entity: str, packed: Sequence[bytes | None]) -> tuple[F64, U8, Mask]:
    """Evaluate packed rows; where one is damaged, each alone, so that only that one is lost."""
    fold = lookup.view.folds[entity]
    own = lookup.view.events(entity, lookup.columns, event_hashes(lookup.columns.ids))
    has_key = np.array([key is not None for key in lookup.keys[entity]], np.bool_)
    at, merge = lookup.columns.times, lookup.is_event & has_key
    is_readable = np.ones(len(packed), np.bool_)
    try:
        read = fold.read(packed, at, own, merge=merge)
    except UnreadableRow as error:
        logger.error("online rows unreadable", extra={"entity": entity, "error": str(error)})
        readable = list(packed)
        for number, row in enumerate(packed):
            try:
                fold.read([row], at[number : number + 1])
            except UnreadableRow:
                readable[number], is_readable[number] = None, False
        read = fold.read(readable, at, own, merge=merge)
    return read.values, read.statuses, is_readable
