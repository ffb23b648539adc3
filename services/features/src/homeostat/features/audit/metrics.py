"""Every instrument of the skew audit."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

CHECKED = Counter(
    "features_audit_checked_total",
    "Served vectors whose values of one entity were folded anew and compared, by result.",
    ["pipeline", "entity", "path", "result"],
)
SKIPPED = Counter(
    "features_audit_skipped_total",
    "Served vectors of sampled keys that could not be compared, by reason.",
    ["pipeline", "reason"],
)
KEYS = Gauge("features_audit_keys", "Keys in the sample.", ["pipeline", "entity"])
RESTARTS = Counter(
    "features_audit_restarts_total",
    "Times the audit began anew because a dependency failed.",
    ["pipeline"],
)
