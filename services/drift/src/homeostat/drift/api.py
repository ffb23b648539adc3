"""HTTP: what was seen, how sure it is, and how far the service has read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query

from homeostat.common.errors import unknown_pipeline
from homeostat.drift.assessment import ColumnReport
from homeostat.drift.detectors import Verdict
from homeostat.drift.monitor import Monitor, Performance, State
from homeostat.drift.store import Store
from homeostat.drift.supervisor import Supervisor

MAX_ALERTS = 500


def routes(supervisor: Callable[[], Supervisor], store: Callable[[], Store]) -> APIRouter:
    router = APIRouter(prefix="/v1/pipelines/{pipeline}", tags=["drift"])

    @router.get("/progress")
    async def progress(pipeline: str) -> dict[str, Any]:
        """Everything below each position is processed, committed, and its alerts are out."""
        _monitor(supervisor(), pipeline)
        watch = supervisor().watches.get(pipeline)
        positions: dict[str, dict[str, int]] = {}
        if watch is not None:
            for (topic, partition), offset in watch.positions.items():
                positions.setdefault(topic, {})[str(partition)] = offset
        clock = watch.clock_millis if watch is not None else None
        return {"clock": clock, "positions": positions, "pending": []}

    @router.get("/drift")
    async def drift(pipeline: str) -> dict[str, Any]:
        """The newest closed window of each live version, feature by feature."""
        monitor = _monitor(supervisor(), pipeline)
        state = await _state(supervisor(), store(), monitor)
        return {
            "pipeline": pipeline,
            "champion": monitor.champion,
            "reference": _reference(monitor),
            "incidents": {
                cause: {"open": each.is_open, "since": each.since, "alerts": each.alerts}
                for cause, each in state.incidents.items()
            },
            "windows": [
                {
                    "version": version,
                    "start": report.start,
                    "end": report.end,
                    "rows": report.rows,
                    "features": [_column(column) for column in report.columns],
                }
                for version, report in state.reports.items()
                if version in monitor.baselines
            ],
            "filling": {
                str(version): {"rows": window.rows, "needed": monitor.tolerance.min_samples}
                for version, window in state.windows.items()
            },
        }

    @router.get("/performance")
    async def performance(pipeline: str) -> dict[str, Any]:
        """The champion's rolling metric on mature labels, by the end of its window in event
        time."""
        monitor = _monitor(supervisor(), pipeline)
        state = await _state(supervisor(), store(), monitor)
        return {
            "pipeline": pipeline,
            "champion": monitor.champion,
            "labels_until": state.labels_until,
            "windows": [_performance(each) for each in state.performance],
        }

    @router.get("/alerts")
    async def alerts(
        pipeline: str, limit: Annotated[int, Query(ge=1, le=MAX_ALERTS)] = 50
    ) -> dict[str, Any]:
        """The newest alerts first."""
        _monitor(supervisor(), pipeline)
        found = await store().alerts(pipeline, limit=limit)
        return {"alerts": [msgspec.to_builtins(alert) for alert in found]}

    return router


def _monitor(supervisor: Supervisor, pipeline: str) -> Monitor:
    monitor = supervisor.references.monitor(pipeline)
    if monitor is None:
        raise unknown_pipeline(pipeline, supervisor.pipelines.values, is_informed=True)
    return monitor


async def _state(supervisor: Supervisor, store: Store, monitor: Monitor) -> State:
    """Our own when this replica leads, else what the leading one has committed."""
    name = monitor.pipeline.name
    watch = supervisor.watches.get(name)
    if watch is not None and watch.is_leading:
        return watch.state
    return (await store.load(name, width=monitor.slice_millis)).state


def _reference(monitor: Monitor) -> dict[str, Any]:
    if monitor.champion is None:
        return {"usable": False, "problems": {"": "there is no champion yet"}}
    baseline = monitor.baselines.get(monitor.champion)
    if baseline is None:
        problem = f"version {monitor.champion} was not announced on model-versions"
        return {"usable": False, "problems": {"": problem}}
    return {"usable": not baseline.problems, "problems": baseline.problems}


def _column(column: ColumnReport) -> dict[str, Any]:
    worst = column.comparison.worst
    return {
        "feature": column.name,
        "verdict": column.verdict,
        "statistic": worst.statistic if worst else None,
        "value": worst.value if worst else None,
        "limit": worst.limit if worst else None,
        "p_value": worst.p_value if worst else None,
        "n": column.samples,
        "missing": column.missing,
        "statistics": {each.statistic: each.value for each in column.comparison.readings},
        "faults": [finding.statistic for finding in column.faults],
        "unit_factor": column.factor,
        "problem": column.problem,
    }


def _performance(each: Performance) -> dict[str, Any]:
    estimate = each.estimate
    return {
        "version": each.version,
        "start": each.start,
        "end": each.end,
        "metric": estimate.metric,
        "value": _known(estimate.value),
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.samples,
        "positives": estimate.positives,
        "limit": _known(each.limit),
        "verdict": each.verdict,
        "insufficient_because": _why(each),
    }


def _why(each: Performance) -> str | None:
    if each.verdict is not Verdict.INSUFFICIENT:
        return None
    return "no reference metric" if math.isnan(each.limit) else "too few positives"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
