"""Every instrument of the feature reads."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

READ_SECONDS = Histogram(
    "features_read_seconds",
    "One read: the round trip to the online store and the evaluation.",
    buckets=(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
)
READ_ROWS = Counter("features_read_rows_total", "Rows of entity keys answered.", ["pipeline"])
READ_FAILURES = Counter(
    "features_read_failures_total", "Reads that the online store did not answer."
)
