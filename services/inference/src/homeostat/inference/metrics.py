"""Every instrument of the inference service. Hot paths keep bound children (``rows``), never look
one up.
"""

from __future__ import annotations

from functools import cache

from prometheus_client import Counter, Gauge, Histogram

_LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

_ROWS = Counter(
    "inference_rows_total",
    "Rows answered on the request path, by HTTP status of the row",
    ["pipeline", "status"],
)
_BATCH_SECONDS = Histogram(
    "inference_batch_seconds",
    "Time of one batch: read features, evaluate, score",
    ["pipeline"],
    buckets=_LATENCY_BUCKETS,
)
_BATCH_ROWS = Histogram(
    "inference_batch_rows", "Rows that were scored together", ["pipeline"], buckets=_ROW_BUCKETS
)
_QUEUE_ROWS = Gauge("inference_queue_rows", "Rows waiting for their batch", ["pipeline"])
_DEGRADED = Counter(
    "inference_degraded_rows_total", "Rows scored without what the online store knows", ["pipeline"]
)
_STREAM = Counter(
    "inference_stream_vectors_total",
    "Vectors read from the feature topic, by what became of them",
    ["pipeline", "outcome"],
)
_LOADS = Counter(
    "inference_model_loads_total",
    "Attempts to load a model version (loaded, quarantined, unavailable)",
    ["pipeline", "outcome"],
)
_QUARANTINED = Gauge(
    "inference_models_quarantined", "Named versions that must not be loaded", ["pipeline"]
)
_DAMAGED = Counter(
    "inference_artifacts_damaged_total",
    "Copies of model files whose digest was wrong",
    ["pipeline", "source"],
)
_LEDGER = Counter("inference_ledger_rows_total", "Ledger rows the broker has acknowledged")
_LEDGER_LOST = Counter(
    "inference_ledger_lost_total", "Ledger rows given up (full, failed, stopped)", ["reason"]
)
_LEDGER_QUEUE = Gauge("inference_ledger_queue_rows", "Ledger rows waiting to be written")
_STORE_FAILURES = Counter(
    "inference_online_store_failures_total", "Reads of the online store that failed or timed out"
)
_BREAKER = Gauge("inference_online_store_breaker_open", "1 while the online store is left alone")

ledger_rows = _LEDGER.inc
ledger_queue = _LEDGER_QUEUE.set
online_store_failure = _STORE_FAILURES.inc
breaker_open = _BREAKER.set


class PipelineMetrics:
    """The instruments of one pipeline's hot paths, bound once."""

    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline
        self._rows: dict[int, Counter] = {}
        self._stream: dict[str, Counter] = {}
        self.batch_seconds = _BATCH_SECONDS.labels(pipeline).observe
        self.batch_rows = _BATCH_ROWS.labels(pipeline).observe
        self.queue_rows = _QUEUE_ROWS.labels(pipeline).set
        self.degraded = _DEGRADED.labels(pipeline).inc

    def rows(self, status: int, count: int = 1) -> None:
        counter = self._rows.get(status)
        if counter is None:
            counter = self._rows[status] = _ROWS.labels(self._pipeline, str(status))
        counter.inc(count)

    def stream(self, outcome: str, count: int) -> None:
        counter = self._stream.get(outcome)
        if counter is None:
            counter = self._stream[outcome] = _STREAM.labels(self._pipeline, outcome)
        counter.inc(count)


@cache
def of(pipeline: str) -> PipelineMetrics:
    return PipelineMetrics(pipeline)


def model_load(pipeline: str, outcome: str) -> None:
    _LOADS.labels(pipeline, outcome).inc()


def models_quarantined(pipeline: str, count: int) -> None:
    _QUARANTINED.labels(pipeline).set(count)


def artifact_damaged(pipeline: str, source: str) -> None:
    _DAMAGED.labels(pipeline, source).inc()


def ledger_lost(reason: str, count: int = 1) -> None:
    _LEDGER_LOST.labels(reason).inc(count)
