"""Every Kafka topic: name, key, schema, partitions, retention, producers and consumers.

Nothing else in the project spells a topic's name. ``{pipeline}`` and ``{entity}`` are filled in by
``of``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from homeostat.common.pipeline.spec import Pipeline

MAX_MESSAGE_BYTES = 1_000_000
ARROW_MESSAGE_BYTES = 512_000


@dataclass(frozen=True)
class Topic:
    """``partitions`` is ``None`` for the count of the installation (12; embedded 4)."""

    template: str
    key: str
    schema: str
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    partitions: int | None = None
    retention: timedelta | None = timedelta(days=7)
    compacted: bool = False

    def of(self, pipeline: str = "", entity: str = "") -> str:
        return self.template.format(pipeline=pipeline, entity=entity.replace("_", "-"))


EVENTS = Topic("{pipeline}-events", "the source's key", "events.Event", ("ingest",), ("features",))
LABELS = Topic("{pipeline}-labels", "event id", "labels.Label", ("ingest",), ("features",))
BY_ENTITY = Topic(
    "{pipeline}-by-{entity}",
    "none: a record holds events of many keys, all of its partition",
    "hops.HopBatch (MessagePack)",
    ("features",),
    ("features",),
)
STATE = Topic(
    "{pipeline}-state-{entity}",
    "entity key, or the marker of a partition",
    "packed window rows",
    ("features",),
    ("features",),
    retention=None,
    compacted=True,
)
POSITIONS = Topic(
    "{pipeline}-positions",
    "the marker of a partition",
    "position and counters of the hops without rows",
    ("features",),
    ("features",),
    retention=None,
    compacted=True,
)
FEATURES = Topic(
    "{pipeline}-features",
    "last entity key",
    "vectors.VectorBatch (Arrow)",
    ("features",),
    ("features", "inference"),
)
PREDICTIONS = Topic(
    "{pipeline}-predictions",
    "unit",
    "ledger.Prediction (JSON or Arrow)",
    ("inference",),
    ("features", "drift", "router"),
)
EXPOSURES = Topic("{pipeline}-exposures", "unit", "exposures.Exposure", ("router",), ("router",))
OUTCOMES = Topic(
    "{pipeline}-outcomes",
    "event id",
    "labels.Outcome",
    ("features",),
    ("features", "drift", "trainer", "router"),
)
ALERTS = Topic(
    "{pipeline}-alerts",
    "pipeline",
    "alerts.Alert",
    ("drift", "features"),
    ("trainer", "router"),
)
LATE = Topic("{pipeline}-events-late", "the source's key", "events.Event", ("features",), ())
DEAD_LETTERS = Topic(
    "{pipeline}-events-dlq",
    "as received",
    "as received",
    ("ingest", "features"),
    (),
    retention=None,
)

PIPELINES = Topic(
    "pipelines",
    "pipeline",
    "pipeline.Snapshot",
    ("cli",),
    ("ingest", "features", "inference", "drift", "trainer", "router"),
    partitions=1,
    retention=None,
    compacted=True,
)
ROLLOUTS = Topic(
    "rollouts",
    "pipeline",
    "rollouts.RolloutSnapshot",
    ("router",),
    ("router", "inference", "drift", "trainer"),
    partitions=1,
    retention=None,
    compacted=True,
)
ROLLOUT_TRIPS = Topic(
    "rollout-trips", "pipeline", "rollouts.Trip", ("router",), ("router",), partitions=1
)
MODEL_VERSIONS = Topic(
    "model-versions",
    "pipeline/version",
    "models.ModelVersion",
    ("trainer",),
    ("features", "inference", "drift", "router"),
    partitions=1,
    retention=None,
    compacted=True,
)
AUDIT = Topic(
    "audit",
    "service",
    "audit.Record",
    ("features", "drift", "trainer", "router"),
    (),
    partitions=1,
    retention=None,
)

GLOBAL = (PIPELINES, ROLLOUTS, ROLLOUT_TRIPS, MODEL_VERSIONS, AUDIT)
PER_PIPELINE = (
    EVENTS,
    LABELS,
    POSITIONS,
    FEATURES,
    PREDICTIONS,
    EXPOSURES,
    OUTCOMES,
    ALERTS,
    LATE,
    DEAD_LETTERS,
)
PER_ENTITY = (BY_ENTITY, STATE)


def of_pipeline(pipeline: Pipeline) -> Iterator[tuple[str, Topic]]:
    """Name and declaration of every topic that a pipeline needs."""
    for topic in PER_PIPELINE:
        yield topic.of(pipeline.name), topic
    for entity in pipeline.entities:
        for topic in PER_ENTITY:
            yield topic.of(pipeline.name, entity), topic
