"""Every Kafka topic: name, key, schema, partitions, retention, producers and consumers.

Nothing else in the project spells a topic's name. ``{pipeline}``, ``{entity}`` and ``{definition}``
(the begin of its hash) are filled in by ``of``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from homeostat.common.pipeline.spec import Pipeline

MAX_MESSAGE_BYTES = 1_000_000
HASH_LENGTH = 8  # of a definition's hash, in names
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

    def of(self, pipeline: str = "", entity: str = "", definition: str = "") -> str:
        return self.template.format(
            pipeline=pipeline,
            entity=entity.replace("_", "-"),
            definition=definition[:HASH_LENGTH],
        )


EVENTS = Topic("{pipeline}-events", "the source's key", "events.Event", ("ingest",), ("features",))
LABELS = Topic("{pipeline}-labels", "event id", "labels.Label", ("ingest",), ("features",))
BY_KEY = Topic(
    "{pipeline}-by-key",
    "none: a record holds events and labels of many keys of the source, all of its partition",
    "hops.HopBatch (MessagePack)",
    ("features",),
    ("features",),
)
BY_ENTITY = Topic(
    "{pipeline}-by-{entity}-{definition}",
    "none: a record holds events of many keys, all of its partition",
    "hops.HopBatch (MessagePack)",
    ("features",),
    ("features",),
)
STATE = Topic(
    "{pipeline}-state-{entity}-{definition}",
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
DEFINITIONS = Topic(
    "definitions",
    "pipeline/definition hash",
    "definitions.Definition",
    ("cli", "features"),
    ("features", "inference"),
    partitions=1,
    retention=None,
    compacted=True,
)
ROLLOUTS = Topic(
    "rollouts",
    "pipeline",
    "rollouts.RolloutSnapshot",
    ("router",),
    ("router", "features", "inference", "drift", "trainer"),
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

GLOBAL = (PIPELINES, DEFINITIONS, ROLLOUTS, ROLLOUT_TRIPS, MODEL_VERSIONS, AUDIT)
PER_PIPELINE = (
    EVENTS,
    LABELS,
    BY_KEY,
    POSITIONS,
    FEATURES,
    PREDICTIONS,
    EXPOSURES,
    OUTCOMES,
    ALERTS,
    LATE,
    DEAD_LETTERS,
)


def of_pipeline(pipeline: Pipeline) -> Iterator[tuple[str, Topic]]:
    """Name and declaration of every topic that a pipeline needs, whatever its features are."""
    for topic in PER_PIPELINE:
        yield topic.of(pipeline.name), topic


def log_of(pipeline: str, entity: str, definition: str, *, is_key: bool) -> str:
    """The log that an entity's state is a fold of: of the source's key, one for all definitions."""
    return BY_KEY.of(pipeline) if is_key else BY_ENTITY.of(pipeline, entity, definition)


def of_definition(pipeline: Pipeline, definition: str) -> Iterator[tuple[str, Topic]]:
    """Name and declaration of the topics that one definition of the features has for itself."""
    for entity in pipeline.entities:
        if entity != pipeline.source.key:
            yield BY_ENTITY.of(pipeline.name, entity, definition), BY_ENTITY
        yield STATE.of(pipeline.name, entity, definition), STATE
