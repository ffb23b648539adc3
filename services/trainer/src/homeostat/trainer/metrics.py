"""Every instrument that the trainer emits."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

ABSORBED = Counter(
    "trainer_triggers_absorbed_total",
    "Requests for a run that came to nothing, by reason.",
    ["pipeline", "kind", "reason"],
)
STARTED = Counter("trainer_runs_started_total", "Runs by what caused them.", ["pipeline", "kind"])
ENDED = Counter("trainer_runs_ended_total", "Runs by how they ended.", ["pipeline", "state"])
STEP_SECONDS = Histogram(
    "trainer_step_seconds",
    "Duration of a step of a run.",
    ["step"],
    buckets=(0.1, 0.5, 1, 5, 15, 30, 60, 120, 300, 600, 1800),
)
UNDECODABLE = Counter(
    "trainer_undecodable_total", "Records of our own topics that could not be read.", ["topic"]
)
OUTBOX = Gauge("trainer_outbox_records", "Decided, but not yet told to Kafka.", ["pipeline"])
UNREGISTERED = Gauge("trainer_mlflow_backlog", "Versions that MLflow does not know yet.")
