"""The online read of a batch: all its rows in one round trip, behind a breaker.

A store that is away fails no request: its features are ``unavailable``, and the answer says that it
is degraded.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence

from redis.asyncio import Redis
from redis.exceptions import RedisError

from homeostat.common.errors import FeaturesRefused, HomeostatError
from homeostat.common.feature_store import reading
from homeostat.common.feature_store.reading import (
    UNKNOWN_OFFSET,
    OnlineAnswer,
    OnlineRows,
    Places,
    Stored,
)
from homeostat.common.feature_store.views import FeatureView
from homeostat.inference import metrics
from homeostat.inference.breaker import Breaker
from homeostat.inference.frames import Frame, frame_of
from homeostat.inference.pipelines import ServedPipeline
from homeostat.inference.scoring import Features, Row

logger = logging.getLogger(__name__)


class OnlineFeatures:
    def __init__(self, redis: Redis, breaker: Breaker, online: OnlineRows) -> None:
        self._redis = redis
        self._breaker = breaker
        self._online = online

    async def read(self, rows: Sequence[Row]) -> list[Features | HomeostatError]:
        """The features of each row; a bad event or key is that row's error alone."""
        results: dict[int, Features | HomeostatError] = {}
        groups: dict[tuple[ServedPipeline, str], list[int]] = defaultdict(list)
        for index, row in enumerate(rows):
            groups[row.served, row.model.version.definition_hash].append(index)
        frames = [
            frame
            for (served, definition), members in groups.items()
            if (frame := frame_of(served, definition, rows, members, results)) is not None
        ]
        places = [self._online.places(frame.lookup) for frame in frames]
        stored = await self._fetch(places)
        for frame, where in zip(frames, places, strict=True):
            answer = (
                reading.unavailable(frame.lookup)
                if stored is None
                else self._online.evaluate(frame.lookup, where, stored)
            )
            results.update(_features(frame, answer, rows))
        return [results[index] for index in range(len(rows))]

    async def _fetch(self, places: Sequence[Places]) -> Stored | None:
        """One round trip for everything; ``None`` when the store is away."""
        keys = reading.wanted(places)
        if not keys:
            return {}
        if not self._breaker.allows():
            return None
        try:
            stored = await reading.fetch(self._redis, keys)
        except (RedisError, OSError) as error:
            self._breaker.failed()
            metrics.online_store_failure()
            metrics.breaker_open(self._breaker.is_open)
            logger.warning("online store unavailable", extra={"error": repr(error)})
            return None
        self._breaker.succeeded()
        metrics.breaker_open(0)
        return stored


def _features(
    frame: Frame, answer: OnlineAnswer, rows: Sequence[Row]
) -> dict[int, Features | HomeostatError]:
    lookup, vectors, is_degraded = frame.lookup, answer.vectors, answer.is_degraded
    results: dict[int, Features | HomeostatError] = {}
    refused = lookup.view.refused(vectors.statuses, lookup.view.feature_names)
    for number, index in enumerate(frame.rows):
        if number in refused:
            results[index] = FeaturesRefused(refused[number])
            continue
        order = _order(lookup.view, rows[index].model.version.features)
        results[index] = Features(
            values=vectors.values[number, order],
            statuses=vectors.statuses[number, order],
            age_ms=int(answer.ages_ms[number]),
            is_degraded=bool(is_degraded[number]),
            event_id=lookup.columns.ids[number],
            event_time=int(lookup.columns.times[number]),
            entities={entity: keys[number] for entity, keys in lookup.keys.items()},
            offsets={
                entity: offset
                for entity, offsets in answer.offsets.items()
                if (offset := int(offsets[number])) != UNKNOWN_OFFSET
            },
        )
    return results


def _order(view: FeatureView, features: tuple[str, ...]) -> slice | list[int]:
    """Where a model's features stand in the view; a slice when they are the view's own."""
    if features == view.feature_names:
        return slice(None)
    return [view.feature_names.index(name) for name in features]
