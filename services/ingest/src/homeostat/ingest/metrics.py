"""Every instrument that ingest emits."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

RECEIVED = Counter(
    "ingest_received_total", "Rows that were sent, accepted or not.", ["pipeline", "kind"]
)
ACCEPTED = Counter(
    "ingest_accepted_total", "Rows that the broker has acknowledged.", ["pipeline", "kind"]
)
REFUSED = Counter(
    "ingest_refused_total",
    "Rows that were answered with an error, by reason.",
    ["pipeline", "kind", "reason"],
)
IN_FLIGHT = Gauge("ingest_in_flight_bytes", "Bytes that wait for the broker's acknowledgement.")
PUBLISH_SECONDS = Histogram(
    "ingest_publish_seconds",
    "From a checked request to the broker's acknowledgement.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 10),
)
