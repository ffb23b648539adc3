"""What a closed window says: a report for each column, and the causes that its findings speak
for."""

from __future__ import annotations

from dataclasses import dataclass

from homeostat.common.schemas.alerts import Cause, Finding
from homeostat.drift.detectors import Comparison, Limits, Verdict, compare
from homeostat.drift.quality import is_stuck, missing_excess, unit_factor
from homeostat.drift.window import SCORE, Baseline, Column, Window


@dataclass(frozen=True)
class Tolerance:
    """What a pipeline allows, from its ``drift`` section."""

    limits: Limits
    min_samples: int
    missing: float  # share of missing values above the reference's
    calendar: frozenset[str] = frozenset()  # features that follow the clock alone


@dataclass(frozen=True)
class ColumnReport:
    """One feature (or the score) in one window. ``problem`` tells why there is no verdict."""

    name: str
    comparison: Comparison
    samples: int
    missing: int
    faults: tuple[Finding, ...] = ()
    factor: float | None = None
    problem: str | None = None

    @property
    def verdict(self) -> Verdict:
        return self.comparison.verdict

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(
            Finding(self.name, reading.statistic, reading.value, reading.limit, self.samples)
            for reading in self.comparison.readings
            if reading.is_beyond
        )


@dataclass(frozen=True)
class WindowReport:
    version: int
    start: int
    end: int
    rows: int
    columns: tuple[ColumnReport, ...]


def assess(baseline: Baseline, window: Window, tolerance: Tolerance) -> WindowReport:
    """Judge every column of a window against the reference of its version."""
    columns = tuple(
        _assess(column, place, window, tolerance) for place, column in enumerate(baseline.columns)
    )
    return WindowReport(baseline.version, window.start, window.end, window.rows, columns)


def _assess(column: Column, place: int, window: Window, tolerance: Tolerance) -> ColumnReport:
    counts, sample = window.counts[place], window.sample[:, place]
    missing = window.missing(place)
    samples = window.rows - missing
    problem = column.problem
    if column.name in tolerance.calendar:
        problem = "it follows the calendar alone: a window shorter than the year always differs"
    if problem:
        unknown = Comparison(Verdict.INSUFFICIENT)
        return ColumnReport(column.name, unknown, samples, missing, problem=problem)
    comparison = compare(
        column.histogram, counts, tolerance.limits, min_samples=tolerance.min_samples
    )
    if column.name == SCORE:  # no score means that the model failed: the guardrails see that
        return ColumnReport(column.name, comparison, samples, missing)
    faults = []
    excess = missing_excess(column, missing=missing, rows=window.rows, allowed=tolerance.missing)
    if excess is not None:
        faults.append(
            Finding(column.name, "missing_excess", excess, tolerance.missing, window.rows)
        )
    is_drifted = comparison.verdict is Verdict.DRIFTED
    if is_drifted and is_stuck(column, counts=counts, sample=sample):
        faults.append(Finding(column.name, "distinct_values", 1.0, 1.0, samples))
    factor = unit_factor(column, sample=sample, min_gap=tolerance.limits.ks) if is_drifted else None
    return ColumnReport(column.name, comparison, samples, missing, tuple(faults), factor)


def triage(report: WindowReport) -> dict[Cause, tuple[Finding, ...]]:
    """The causes that a window speaks for, with their findings.

    A fault explains whatever else has moved, so drift counts only in windows without one. Scores
    that moved while no single feature did count as a change of the prior.
    """
    faults = tuple(finding for column in report.columns for finding in column.faults)
    units = tuple(
        Finding(column.name, "unit_factor", column.factor, 1.0, column.samples)
        for column in report.columns
        if column.factor is not None
    )
    if faults or units:
        return {
            cause: findings
            for cause, findings in ((Cause.DATA_FAULT, faults), (Cause.UNIT_CHANGE, units))
            if findings
        }
    moved = {
        column.name: column.findings
        for column in report.columns
        if column.verdict is Verdict.DRIFTED
    }
    findings = tuple(finding for group in moved.values() for finding in group)
    if moved.keys() - {SCORE}:
        return {Cause.COVARIATE: findings}
    return {Cause.PRIOR: findings} if moved else {}
