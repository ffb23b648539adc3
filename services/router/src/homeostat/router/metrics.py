"""Every instrument of the router and its judge, with children bound once for the hot path."""

from __future__ import annotations

from functools import cache

from prometheus_client import Counter, Gauge, Histogram

_BUCKETS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

_PREDICTIONS = Counter(
    "router_predictions_total", "Rows answered, by HTTP status of the row", ["pipeline", "status"]
)
_PREDICTION_SECONDS = Histogram(
    "router_prediction_seconds",
    "Time of one row, fallback included",
    ["pipeline"],
    buckets=_BUCKETS,
)
_SERVED = Counter(
    "router_served_total", "Rows by the variant that answered", ["pipeline", "variant"]
)
_FALLBACKS = Counter(
    "router_fallbacks_total",
    "Rows of the challenger that the champion answered, by reason",
    ["pipeline", "reason"],
)
_RETRIES = Counter("router_retries_total", "Second calls of the champion", ["pipeline"])
_TRIPS = Counter("router_guard_trips_total", "Challengers that a guard took to zero", ["pipeline"])
_SHADOWS_DROPPED = Counter(
    "router_shadow_dropped_total", "Shadow rows beyond the budget", ["pipeline"]
)
RETRY_BUDGET_SPENT = Counter(
    "router_retry_budget_spent_total", "Rows that failed because the retry budget was empty"
)
IN_FLIGHT = Gauge("router_in_flight_rows", "Rows that are being answered")
SHED = Counter("router_shed_rows_total", "Rows refused with 429")
UPSTREAM_SECONDS = Histogram(
    "router_upstream_seconds", "Time of one call of inference", buckets=_BUCKETS
)
UPSTREAM_ROWS = Histogram(
    "router_upstream_rows",
    "Rows of one call of inference",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
)
EXPOSURES_SENT = Counter("router_exposures_total", "Exposures that the broker has acknowledged")
EXPOSURES_LOST = Counter("router_exposures_lost_total", "Exposures that were not written")

IS_LEADER = Gauge("judge_is_leader", "1 on the judge that acts")
EPOCH = Gauge("judge_epoch", "Epoch of the lease that this judge held last")
DECISIONS = Counter("judge_decisions_total", "Decisions taken", ["pipeline", "action"])
CYCLE_RECORDS = Counter("judge_records_total", "Records judged", ["topic"])
UNREADABLE = Counter("judge_unreadable_records_total", "Records skipped, not ours", ["topic"])


class PipelineMetrics:
    """The bound children of one pipeline."""

    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline
        self.seconds = _PREDICTION_SECONDS.labels(pipeline)
        self.retries = _RETRIES.labels(pipeline)
        self.trips = _TRIPS.labels(pipeline)
        self.shadows_dropped = _SHADOWS_DROPPED.labels(pipeline)
        self.status = cache(lambda status: _PREDICTIONS.labels(pipeline, str(status)))
        self.served = cache(lambda variant: _SERVED.labels(pipeline, variant))
        self.fallbacks = cache(lambda reason: _FALLBACKS.labels(pipeline, reason))


@cache
def of(pipeline: str) -> PipelineMetrics:
    return PipelineMetrics(pipeline)
