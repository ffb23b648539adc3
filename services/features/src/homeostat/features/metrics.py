"""Every instrument of the features service; a worker's books come from its last transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from homeostat.features.freshness import BUCKET_SECONDS
from homeostat.features.reports import Report
from homeostat.features.supervision import WorkerSupervisor

_BOUNDS = (*map(str, BUCKET_SECONDS), "+Inf")
_WORKER_LABELS = ("pipeline", "definition")
_LAG_LABELS = ("group", "topic", "partition")


class WorkerCollector(Collector):
    """Exports what the workers reported, so that the figures are exact across their restarts."""

    def __init__(
        self,
        workers: Callable[[], Iterable[WorkerSupervisor]],
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._workers = workers
        self._now = now

    def collect(self) -> Iterable[Metric]:
        records = CounterMetricFamily(
            "features_records",
            "Records by what became of them, as committed with the state.",
            labels=(*_WORKER_LABELS, "topic", "partition", "fate"),
        )
        positions = GaugeMetricFamily(
            "features_position_offset",
            "Next input offset of a partition.",
            labels=(*_WORKER_LABELS, "topic", "partition"),
        )
        behind = GaugeMetricFamily(
            "kafka_consumer_lag_records",
            "Records of a partition that are not taken in, as the worker last knew.",
            labels=_LAG_LABELS,
        )
        behind_seconds = GaugeMetricFamily(
            "kafka_consumer_lag_seconds",
            "Since when a partition has not been taken in whole: the time between two reports "
            "when nothing is behind, growing while its worker is stuck.",
            labels=_LAG_LABELS,
        )
        restarts = CounterMetricFamily(
            "features_worker_restarts",
            "Times that a definition's worker was started again.",
            labels=_WORKER_LABELS,
        )
        restore = GaugeMetricFamily(
            "features_restore_seconds",
            "How long the last take-over of partitions lasted.",
            labels=_WORKER_LABELS,
        )
        freshness = HistogramMetricFamily(
            "features_freshness_seconds",
            "From an event's time until a read can find it in an entity's row; replays left out.",
            labels=(*_WORKER_LABELS, "topic"),
        )
        up = GaugeMetricFamily(
            "features_worker_up", "Whether a definition's worker runs.", labels=_WORKER_LABELS
        )
        for worker in self._workers():
            name = (worker.job.pipeline, worker.job.definition)
            restarts.add_metric(name, worker.restarts)
            restore.add_metric(name, worker.report.restore_seconds)
            up.add_metric(name, int(worker.is_running))
            for part in worker.report.partitions:
                place = (*name, part.topic, str(part.partition))
                positions.add_metric(place, part.position)
                source = (worker.job.group, part.topic, str(part.partition))
                behind.add_metric(source, part.end - part.position)
                if part.current_at:
                    seconds = self._now() - part.current_at / 1000
                    behind_seconds.add_metric(source, max(0.0, seconds))
                for fate, number in part.counters.items():
                    records.add_metric((*place, fate), number)
            for topic, (counts, total) in _freshness(worker.report).items():
                cumulated = zip(_BOUNDS, accumulate(counts), strict=True)
                buckets = [(bound, float(count)) for bound, count in cumulated]
                freshness.add_metric((*name, topic), buckets, total)
        return (records, positions, behind, behind_seconds, restarts, restore, freshness, up)


def _freshness(report: Report) -> Mapping[str, tuple[list[int], float]]:
    """Counts by bucket, and the sum of seconds, of each topic with events."""
    found: dict[str, tuple[list[int], float]] = {}
    for part in report.partitions:
        if any(part.freshness):
            counts, total = found.get(part.topic, ([0] * len(part.freshness), 0.0))
            both = [had + has for had, has in zip(counts, part.freshness, strict=True)]
            found[part.topic] = both, total + part.freshness_sum
    return found
