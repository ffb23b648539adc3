"""The service's step: ledger rows and outcomes in, alerts out. Pure: time and references are
arguments."""

from __future__ import annotations

import ast
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property

import numpy as np

from homeostat.common.pipeline import Pipeline
from homeostat.common.schemas.alerts import Alert, AlertKind, Cause, Finding
from homeostat.common.windows.spec import parse_window
from homeostat.drift.assessment import Tolerance, WindowReport, assess, triage
from homeostat.drift.columns import Array, Outcomes, Predictions
from homeostat.drift.detectors import Limits, Verdict
from homeostat.drift.joins import Slice, add_outcomes, add_predictions, mature_rows
from homeostat.drift.performance import Estimate, measure
from homeostat.drift.policy import Incident, Rules, observe
from homeostat.drift.window import Baseline, Window

SLICES = 24  # a performance window moves by a 24th of itself
KEPT_ESTIMATES = 7 * SLICES
KEPT_FAULTS = 32
INPUT_CAUSES = (Cause.DATA_FAULT, Cause.UNIT_CHANGE, Cause.COVARIATE, Cause.PRIOR)
KINDS = {
    Cause.DATA_FAULT: AlertKind.QUALITY,
    Cause.UNIT_CHANGE: AlertKind.QUALITY,
    Cause.COVARIATE: AlertKind.DATA_DRIFT,
    Cause.PRIOR: AlertKind.PREDICTION_DRIFT,
    Cause.CONCEPT: AlertKind.PERFORMANCE,
}


@dataclass(frozen=True)
class Labels:
    """Outcomes, and the instant up to which every label that existed is among those read so far.

    Performance moves with that instant, not with the clock: while labels are silent or not read to
    their end, an event without one proves nothing. ``None``: not known yet.
    """

    outcomes: Outcomes
    complete_until: int | None  # epoch ms


@dataclass(frozen=True)
class Tick:
    """Time passed without records: a window may end."""


Input = Predictions | Labels | Tick


@dataclass(frozen=True)
class Fault:
    """A stretch of time whose inputs were broken: nothing that it touched may cause a
    retraining."""

    cause: Cause
    start: int
    end: int


@dataclass(frozen=True)
class Performance:
    """The rolling metric after one more slice of event time. ``limit`` is NaN without a
    reference."""

    version: int
    start: int
    end: int
    estimate: Estimate
    limit: float
    verdict: Verdict


@dataclass(frozen=True)
class State:
    """Everything that a replica remembers of one pipeline."""

    champion: int | None = None
    windows: Mapping[int, Window] = field(default_factory=dict)  # by version
    slices: Mapping[int, Slice] = field(default_factory=dict)  # by event time
    labels_until: int | None = None
    evaluated: int | None = None  # the last slice whose performance was judged
    incidents: Mapping[Cause, Incident] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    reports: Mapping[int, WindowReport] = field(default_factory=dict)  # the newest, by version
    performance: tuple[Performance, ...] = ()


@dataclass(frozen=True)
class Outputs:
    """Alerts, and what did not count: each is a number that somebody can look up."""

    alerts: tuple[Alert, ...] = ()
    duplicates: int = 0
    late_labels: int = 0
    without_reference: int = 0


@dataclass(frozen=True)
class Monitor:
    """What one pipeline is watched with: its spec, its champion, and the versions' references."""

    pipeline: Pipeline
    champion: int | None = None
    baselines: Mapping[int, Baseline] = field(default_factory=dict)

    def step(self, state: State, item: Input, now: int) -> tuple[State, Outputs]:
        """Take one input at pipeline time ``now`` (epoch ms)."""
        state = self._followed(state)
        match item:
            case Predictions():
                return self._take_predictions(state, item, now)
            case Labels():
                return self._take_labels(state, item, now)
            case Tick():
                return self._close_windows(state, now)

    def _followed(self, state: State) -> State:
        """A new champion starts with a clean slate; what it has seen as challenger counts."""
        if state.champion == self.champion:
            return state
        return replace(state, champion=self.champion, incidents={})

    # Inputs and predictions

    def _take_predictions(self, state: State, rows: Predictions, now: int) -> tuple[State, Outputs]:
        oldest = self._oldest_slice(now)
        slices, first = add_predictions(
            _since(state.slices, oldest), rows, width=self.slice_millis, oldest=oldest
        )
        state = replace(state, slices=slices)
        alerts: list[Alert] = []
        unreferenced = 0
        for version, inputs in rows.inputs.items():
            counted = first[inputs.rows]
            places, vectors = inputs.rows[counted], inputs.vectors[counted]
            baseline = self.baselines.get(version)
            if baseline is None or vectors.shape[1] != len(baseline.columns) - 1:
                unreferenced += len(places)
                continue
            state, raised = self._fill(state, baseline, rows, places, vectors, now)
            alerts += raised
        return state, Outputs(
            alerts=tuple(alerts),
            duplicates=int((~first).sum()),
            without_reference=unreferenced,
        )

    def _fill(
        self,
        state: State,
        baseline: Baseline,
        rows: Predictions,
        places: Array,
        vectors: np.ndarray[tuple[int, int], np.dtype[np.float64]],
        now: int,
    ) -> tuple[State, list[Alert]]:
        """Add rows to a version's window, in order of time; one that ends on the way is judged."""
        alerts: list[Alert] = []
        numbers = rows.at[places] // self.window_millis
        for number in np.unique(numbers):
            state, raised = self._close(state, baseline, int(number), now)
            alerts += raised
            inside = numbers == number
            here = places[inside]
            window = baseline.count(
                rows.key[here], vectors[inside], rows.score[here], rows.at[here]
            )
            current = state.windows.get(baseline.version)
            merged = current.merged(window) if current else window
            state = replace(state, windows={**state.windows, baseline.version: merged})
        return state, alerts

    def _close_windows(self, state: State, now: int) -> tuple[State, Outputs]:
        alerts: list[Alert] = []
        for baseline in self.baselines.values():
            state, raised = self._close(state, baseline, now // self.window_millis, now)
            alerts += raised
        return state, Outputs(tuple(alerts))

    def _close(
        self, state: State, baseline: Baseline, number: int, now: int
    ) -> tuple[State, list[Alert]]:
        """Judge a window that stretch ``number`` finds complete; one with too few rows stays
        open."""
        window = state.windows.get(baseline.version)
        if window is None or window.end // self.window_millis >= number:
            return state, []
        if window.rows < self.pipeline.drift.min_samples:
            return state, []
        report = assess(baseline, window, self.tolerance)
        left = {version: each for version, each in state.windows.items() if each is not window}
        state = replace(state, windows=left, reports={**state.reports, baseline.version: report})
        if baseline.version != self.champion:
            return state, []
        return self._judge_window(state, report, min(now, number * self.window_millis))

    def _judge_window(
        self, state: State, report: WindowReport, now: int
    ) -> tuple[State, list[Alert]]:
        found = triage(report)
        is_fault = any(cause.is_fault for cause in found)
        if not is_fault and self._tainted(state, report.start, report.end):
            found = {}  # the fault's after-effect in windowed features, not a drift of its own
        incidents, alerts = dict(state.incidents), []
        for cause in INPUT_CAUSES:
            incidents[cause], is_due = observe(
                incidents.get(cause, Incident()),
                self._input_rules,
                frozenset(finding.subject for finding in found.get(cause, ())),
                start=report.start,
                at=report.end,
            )
            if is_due:
                alerts.append(
                    self._alert(
                        cause,
                        incidents[cause],
                        window=(report.start, report.end),
                        version=report.version,
                        findings=found[cause],
                        now=now,
                    )
                )
        faults = state.faults
        for cause in found:
            if cause.is_fault and incidents[cause].is_open:
                faults = _extended(faults, cause, incidents[cause].since, report.end)
        return replace(state, incidents=incidents, faults=faults), alerts

    # Labels and performance

    def _take_labels(self, state: State, labels: Labels, now: int) -> tuple[State, Outputs]:
        oldest = self._oldest_slice(now)
        slices, late = add_outcomes(
            _since(state.slices, oldest), labels.outcomes, width=self.slice_millis, oldest=oldest
        )
        state = replace(state, slices=slices)
        if labels.complete_until is None:
            return state, Outputs(late_labels=late)
        until = max(labels.complete_until, state.labels_until or labels.complete_until)
        state = replace(state, labels_until=until)
        last = (until - self.maturity_millis) // self.slice_millis - 1
        first = last if state.evaluated is None else max(state.evaluated + 1, last - KEPT_ESTIMATES)
        alerts: list[Alert] = []
        for number in range(first, last + 1):
            state, raised = self._evaluate(state, number, now)
            alerts += raised
        return state, Outputs(tuple(alerts), late_labels=late)

    def _evaluate(self, state: State, last: int, now: int) -> tuple[State, list[Alert]]:
        """Judge the champion on the window that ends with slice ``last``, whose labels are all
        mature."""
        state = replace(state, evaluated=max(last, state.evaluated or last))
        if self.champion is None:
            return state, []
        judged = self.judge_performance(state, last)
        if judged.estimate.samples == 0:
            return state, []
        state = replace(state, performance=(*state.performance, judged)[-KEPT_ESTIMATES:])
        if judged.verdict is Verdict.INSUFFICIENT:
            return state, []
        incident, is_due = observe(
            state.incidents.get(Cause.CONCEPT, Incident()),
            self._performance_rules,
            frozenset({judged.estimate.metric} if judged.verdict is Verdict.DRIFTED else ()),
            start=judged.start,
            at=judged.end,
        )
        state = replace(state, incidents={**state.incidents, Cause.CONCEPT: incident})
        if not is_due:
            return state, []
        estimate = judged.estimate
        finding = Finding(estimate.metric, "value", estimate.value, judged.limit, estimate.samples)
        alert = self._alert(
            Cause.CONCEPT,
            incident,
            window=(judged.start, judged.end),
            version=judged.version,
            findings=(finding,),
            now=min(now, judged.end + self.maturity_millis),
            fault=self._tainted(state, judged.start, judged.end),
        )
        return state, [alert]

    def judge_performance(self, state: State, last: int) -> Performance:
        """The rolling metric of the champion over the window of slices that ends with ``last``."""
        if self.champion is None:
            raise ValueError("without a champion there is no performance to judge")
        limits = self.pipeline.drift.performance
        first = last - SLICES + 1
        absent = self.pipeline.source.label.absent
        rows = mature_rows(
            state.slices,
            first=first,
            last=last,
            version=self.champion,
            absent=None if absent == "drop" else float(absent),
        )
        estimate = measure(
            limits.metric, score=rows["score"], decision=rows["decision"], label=rows["label"]
        )
        baseline = self.baselines.get(self.champion)
        reference = baseline.metrics.get(limits.metric, math.nan) if baseline else math.nan
        limit = (1 - limits.drop) * reference
        return Performance(
            version=self.champion,
            start=first * self.slice_millis,
            end=(last + 1) * self.slice_millis,
            estimate=estimate,
            limit=limit,
            verdict=_judge(estimate, limit, min_positives=limits.min_positives),
        )

    # Shared

    def _alert(
        self,
        cause: Cause,
        incident: Incident,
        *,
        window: tuple[int, int],
        version: int,
        findings: tuple[Finding, ...],
        now: int,
        fault: Cause | None = None,
    ) -> Alert:
        name = self.pipeline.name
        identity = f"{name}/{version}/{cause}/{incident.since}/{incident.alerts}"
        told = fault or cause
        return Alert(
            id=hashlib.blake2b(identity.encode(), digest_size=12).hexdigest(),
            pipeline=name,
            kind=KINDS[cause],
            cause=told,
            at=now,
            window_start=window[0],
            window_end=window[1],
            version=version,
            findings=findings,
            retrain=not told.is_fault,
            message=_message(told, findings),
        )

    def _tainted(self, state: State, start: int, end: int) -> Cause | None:
        """The fault that reaches into a stretch of time, through the features' own windows if need
        be."""
        for fault in reversed(state.faults):
            if fault.start <= end and start <= fault.end + self._memory_millis:
                return fault.cause
        return None

    def _oldest_slice(self, now: int) -> int:
        """Rows stay for maturity, the performance window, and one more for labels that are late."""
        window = _millis(self.pipeline.drift.performance.window)
        return (now - self.maturity_millis - 2 * window) // self.slice_millis

    @cached_property
    def window_millis(self) -> int:
        return _millis(self.pipeline.drift.window)

    @cached_property
    def slice_millis(self) -> int:
        return max(1, _millis(self.pipeline.drift.performance.window) // SLICES)

    @cached_property
    def maturity_millis(self) -> int:
        return _millis(self.pipeline.source.label.maturity)

    @cached_property
    def tolerance(self) -> Tolerance:
        spec = self.pipeline.drift
        limits = Limits(psi=spec.limits.psi, js=spec.limits.js, ks=spec.limits.ks)
        return Tolerance(limits, spec.min_samples, spec.missing, self._calendar)

    @cached_property
    def _calendar(self) -> frozenset[str]:
        """Features that are computed from nothing but the event's time."""
        clock = {self.pipeline.source.time, "event_time"}
        return frozenset(
            name
            for name, spec in self.pipeline.expressions.items()
            if _names_read(spec.expression) <= clock
        )

    @cached_property
    def _memory_millis(self) -> int:
        """How long a feature remembers an event; lifetime features are left out."""
        spans = [
            (parse_window(spec.window).size or timedelta(0)) + spec.delay
            for spec in self.pipeline.aggregates.values()
        ]
        return _millis(max(spans, default=timedelta(0)))

    @cached_property
    def _input_rules(self) -> Rules:
        performance = _millis(self.pipeline.drift.performance.window)
        cooldown = max(_millis(self.pipeline.training.cooldown), self.window_millis)
        renewal = max(cooldown, self.maturity_millis + performance)
        return Rules(self.pipeline.drift.consecutive, cooldown, renewal)

    @cached_property
    def _performance_rules(self) -> Rules:
        window = _millis(self.pipeline.drift.performance.window)
        cooldown = max(_millis(self.pipeline.training.cooldown), window)
        return Rules(self.pipeline.drift.consecutive, cooldown, renewal=cooldown)


def _judge(estimate: Estimate, limit: float, *, min_positives: int) -> Verdict:
    """Drifted only when the whole interval lies below the limit; no reference is no verdict."""
    if estimate.positives < min_positives or math.isnan(limit) or math.isnan(estimate.value):
        return Verdict.INSUFFICIENT
    return Verdict.DRIFTED if estimate.high < limit else Verdict.STABLE


def _message(cause: Cause, findings: tuple[Finding, ...]) -> str:
    worst = sorted(
        findings, key=lambda item: abs(item.value - item.limit) / (item.limit or 1), reverse=True
    )
    subjects = list(dict.fromkeys(finding.subject for finding in worst))
    lead = worst[0]
    others = f" and {len(subjects) - 1} more" if len(subjects) > 1 else ""
    return (
        f"{cause.value.replace('_', ' ')}: {lead.subject}{others} "
        f"({lead.statistic} {lead.value:.3g}, limit {lead.limit:.3g}, n {lead.samples})"
    )


def _names_read(expression: str) -> set[str]:
    """
    >>> _names_read("hour(event_time, 'UTC') < 6")
    {'event_time'}
    """
    nodes = list(ast.walk(ast.parse(expression, mode="eval")))
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    return {node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in called}


def _extended(faults: tuple[Fault, ...], cause: Cause, start: int, end: int) -> tuple[Fault, ...]:
    others = tuple(each for each in faults if (each.cause, each.start) != (cause, start))
    return (*others, Fault(cause, start, end))[-KEPT_FAULTS:]


def _since(slices: Mapping[int, Slice], oldest: int) -> Mapping[int, Slice]:
    if not slices or min(slices) >= oldest:
        return slices
    return {number: each for number, each in slices.items() if number >= oldest}


def _millis(duration: timedelta) -> int:
    return round(duration.total_seconds() * 1000)
