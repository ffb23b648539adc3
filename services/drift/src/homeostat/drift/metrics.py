"""Every instrument that the drift service emits."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

ROWS = Counter(
    "drift_rows_total",
    "Rows read, by what became of them: counted, duplicate, late, without_reference, unreadable.",
    ["pipeline", "topic", "result"],
)
ALERTS = Counter("drift_alerts_total", "Alerts decided.", ["pipeline", "kind", "cause"])
CRASHES = Counter(
    "drift_watch_crashes_total",
    "Watches that ended by a fault of ours and were restarted.",
    ["pipeline"],
)
DISTANCE = Gauge(
    "drift_feature_distance",
    "A feature's distance from the champion's reference in the newest window.",
    ["pipeline", "feature", "statistic"],
)
VERDICT = Gauge(
    "drift_feature_verdict",
    "1 drifted, 0 stable, -1 insufficient: a feature in the champion's newest window.",
    ["pipeline", "feature"],
)
MISSING = Gauge(
    "drift_feature_missing_ratio",
    "Share of missing values of a feature in the newest window.",
    ["pipeline", "feature"],
)
REFERENCE_USABLE = Gauge(
    "drift_reference_usable",
    "Whether the champion's reference can be compared with, for every feature; 0 means unknown.",
    ["pipeline"],
)
PERFORMANCE = Gauge(
    "drift_performance",
    "The champion's rolling metric on mature labels, with the bounds of its interval.",
    ["pipeline", "metric", "bound"],
)
PERFORMANCE_LIMIT = Gauge(
    "drift_performance_limit", "Below it the metric alarms.", ["pipeline", "metric"]
)
INCIDENT_OPEN = Gauge("drift_incident_open", "1 while an incident is open.", ["pipeline", "cause"])
JOIN_ROWS = Gauge("drift_join_rows", "Events kept to join predictions with labels.", ["pipeline"])
COMMIT_SECONDS = Histogram(
    "drift_commit_seconds",
    "Writing state and offsets to the database.",
    ["pipeline"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
