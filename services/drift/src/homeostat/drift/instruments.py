"""One pipeline's metrics, bound once; they show the champion, since challengers come and go."""

from __future__ import annotations

from homeostat.common.schemas.alerts import Cause
from homeostat.common.topics import OUTCOMES, PREDICTIONS, Topic
from homeostat.drift import metrics
from homeostat.drift.assessment import WindowReport
from homeostat.drift.columns import Predictions
from homeostat.drift.detectors import Verdict
from homeostat.drift.monitor import Labels, Monitor, Outputs, Performance, State

_VERDICTS = {Verdict.DRIFTED: 1, Verdict.STABLE: 0, Verdict.INSUFFICIENT: -1}


class Instruments:
    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline
        self._rows = {
            (topic.template, result): metrics.ROWS.labels(pipeline, topic.of(pipeline), result)
            for topic, results in (
                (PREDICTIONS, ("counted", "duplicate", "without_reference", "unreadable")),
                (OUTCOMES, ("counted", "late", "unreadable")),
            )
            for result in results
        }
        self._joined = metrics.JOIN_ROWS.labels(pipeline)
        self._reference = metrics.REFERENCE_USABLE.labels(pipeline)
        self._open = {cause: metrics.INCIDENT_OPEN.labels(pipeline, cause) for cause in Cause}
        self._shown: tuple[WindowReport | None, Performance | None] = (None, None)

    def count_predictions(self, rows: Predictions, outputs: Outputs) -> None:
        counted = len(rows) - outputs.duplicates - outputs.without_reference
        self._count(PREDICTIONS, "counted", counted)
        self._count(PREDICTIONS, "duplicate", outputs.duplicates)
        self._count(PREDICTIONS, "without_reference", outputs.without_reference)

    def count_outcomes(self, labels: Labels, outputs: Outputs) -> None:
        self._count(OUTCOMES, "counted", len(labels.outcomes) - outputs.late_labels)
        self._count(OUTCOMES, "late", outputs.late_labels)

    def count_unreadable(self, topic: Topic, records: int) -> None:
        self._count(topic, "unreadable", records)

    def _count(self, topic: Topic, result: str, rows: int) -> None:
        if rows:
            self._rows[topic.template, result].inc(rows)

    def show(self, state: State, monitor: Monitor) -> None:
        """Bring the gauges up to date with what was committed."""
        baseline = None if monitor.champion is None else monitor.baselines.get(monitor.champion)
        self._reference.set(int(baseline is not None and not baseline.problems))
        self._joined.set(sum(len(each.rows) for each in state.slices.values()))
        for cause, gauge in self._open.items():
            incident = state.incidents.get(cause)
            gauge.set(int(incident is not None and incident.is_open))
        report = None if monitor.champion is None else state.reports.get(monitor.champion)
        performance = state.performance[-1] if state.performance else None
        if report is not None and report is not self._shown[0]:
            self._show_report(report)
        if performance is not None and performance is not self._shown[1]:
            self._show_performance(performance)
        self._shown = report, performance

    def _show_report(self, report: WindowReport) -> None:
        for column in report.columns:
            labels = self._pipeline, column.name
            metrics.VERDICT.labels(*labels).set(_VERDICTS[column.verdict])
            metrics.MISSING.labels(*labels).set(column.missing / report.rows)
            for reading in column.comparison.readings:
                metrics.DISTANCE.labels(*labels, reading.statistic).set(reading.value)

    def _show_performance(self, performance: Performance) -> None:
        estimate = performance.estimate
        for bound in ("value", "low", "high"):
            figure = getattr(estimate, bound)
            metrics.PERFORMANCE.labels(self._pipeline, estimate.metric, bound).set(figure)
        limit = metrics.PERFORMANCE_LIMIT.labels(self._pipeline, estimate.metric)
        limit.set(performance.limit)
