"""Every instrument of the offline store's writers."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

ROWS = Counter("features_offline_rows_total", "Rows committed.", ["pipeline", "table"])
REFUSED = Counter(
    "features_offline_refused_total",
    "Records that have no place in their table.",
    ["pipeline", "table"],
)
EXPIRED = Counter(
    "features_offline_expired_total",
    "Records that their topic deleted before they were written.",
    ["pipeline", "table"],
)
COMMIT_SECONDS = Histogram(
    "features_offline_commit_seconds",
    "Writing one commit of one table.",
    ["pipeline", "table"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
BUFFERED_BYTES = Gauge(
    "features_offline_buffered_bytes", "Rows taken in and not yet committed.", ["pipeline", "table"]
)
RESTARTS = Counter(
    "features_offline_restarts_total",
    "Times a writer went back to its last commit because a dependency failed.",
    ["pipeline"],
)
COMPACTIONS = Counter(
    "features_offline_compactions_total",
    "Merges of small files, by result: done, failed.",
    ["pipeline", "table", "result"],
)
