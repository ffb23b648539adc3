"""Every instrument of the features service; a worker's books come from its last transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from homeostat.features.supervision import WorkerSupervisor


class WorkerCollector(Collector):
    """Exports what the workers reported, so that the figures are exact across their restarts."""

    def __init__(self, workers: Callable[[], Mapping[str, WorkerSupervisor]]) -> None:
        self._workers = workers

    def collect(self) -> Iterable[Metric]:
        records = CounterMetricFamily(
            "features_records",
            "Records by what became of them, as committed with the state.",
            labels=("pipeline", "topic", "partition", "fate"),
        )
        positions = GaugeMetricFamily(
            "features_position_offset",
            "Next input offset of a partition.",
            labels=("pipeline", "topic", "partition"),
        )
        restarts = CounterMetricFamily(
            "features_worker_restarts",
            "Times that a pipeline's worker was started again.",
            labels=("pipeline",),
        )
        restore = GaugeMetricFamily(
            "features_restore_seconds",
            "How long the last take-over of partitions lasted.",
            labels=("pipeline",),
        )
        up = GaugeMetricFamily(
            "features_worker_up", "Whether a pipeline's worker runs.", labels=("pipeline",)
        )
        for name, worker in self._workers().items():
            restarts.add_metric((name,), worker.restarts)
            restore.add_metric((name,), worker.report.restore_seconds)
            up.add_metric((name,), int(worker.is_running))
            for part in worker.report.partitions:
                place = (name, part.topic, str(part.partition))
                positions.add_metric(place, part.position)
                for fate, number in part.counters.items():
                    records.add_metric((*place, fate), number)
        return (records, positions, restarts, restore, up)
