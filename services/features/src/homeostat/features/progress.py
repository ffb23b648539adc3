"""Where a pipeline's partitions stand, over all workers: the online store's progress keys."""

from __future__ import annotations

from collections.abc import Mapping

from redis.asyncio import Redis
from redis.exceptions import RedisError

from homeostat.common import topics
from homeostat.common.errors import TransientError
from homeostat.common.feature_store.online import decode_progress, progress_key
from homeostat.common.feature_store.views import FeatureView

EVENTS, LABELS = "-events", "-labels"  # their names among the keys: no field is called so
INTAKE = "intake"  # in the place of a definition: both are read once, whatever the features are


def inputs(view: FeatureView) -> Mapping[str, str]:
    """Every input topic of a pipeline, with its name among the progress keys."""
    name = view.pipeline.name
    return {
        topics.EVENTS.of(name): EVENTS,
        topics.LABELS.of(name): LABELS,
        **{log: entity for entity, log in view.logs.items()},
    }


def input_key(view: FeatureView, name: str, partition: int) -> bytes:
    """The progress key of a partition of one of them."""
    definition = INTAKE if name in (EVENTS, LABELS) else view.definition_hash
    return progress_key(view.pipeline.name, definition, name, partition)


async def read_progress(redis: Redis, view: FeatureView, *, partitions: int) -> dict[str, object]:
    """The answer of a progress endpoint: below a position, everything is done and acknowledged.

    Raises:
        TransientError: the store is away.
    """
    places = [
        (topic, part, input_key(view, short, part))
        for topic, short in inputs(view).items()
        for part in range(partitions)
    ]
    try:
        values: list[bytes | None] = await redis.mget([key for _, _, key in places])  # type: ignore[assignment]  # not decoded
    except (RedisError, OSError) as error:
        raise TransientError("the online store is away", retry_after_seconds=1) from error
    positions: dict[str, dict[str, int]] = {topic: {} for topic in inputs(view)}
    clock = 0
    for (topic, part, _), value in zip(places, values, strict=True):
        if value is None:  # nothing was folded there yet, by anybody
            positions[topic][str(part)] = 0
            continue
        progress = decode_progress(value)
        positions[topic][str(part)] = progress.offset
        clock = max(clock, progress.pipeline_time)
    return {"clock": clock or None, "positions": positions, "pending": []}
