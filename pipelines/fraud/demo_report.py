"""What the demo found out: the services' timeline, and the scores against the truth."""

import asyncio
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Self

import httpx
import numpy as np
import pyarrow as pa
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from homeostat.cli.addresses import Addresses
from homeostat.cli.replay.player import Predicted, Report

MAX_FEATURES = 4
PAUSES = ("held", "released")  # a rollout that waits for telemetry, which the table leaves out


@dataclass(frozen=True)
class Clock:
    """Pipeline time as days and hours since the scenario began."""

    start: datetime

    def since(self, millis: int) -> timedelta:
        return timedelta(milliseconds=millis) - timedelta(seconds=self.start.timestamp())


@dataclass(frozen=True)
class Part:
    """One stretch of the stream, and what was sent in it."""

    begin: timedelta
    end: timedelta
    report: Report


class Scores:
    """The decisions that callers got, held against the truth of the simulated stream."""

    def __init__(self, table: pa.Table) -> None:
        ids = table.column("transaction_id").to_pylist()
        self._row = {event_id: row for row, event_id in enumerate(ids)}
        times = table.column("event_time").cast(pa.int64()).to_numpy()
        self._times = times
        self._truth = table.column("is_fraud").to_numpy() == 1
        self._decisions = np.full(len(ids), -1, np.int8)
        self._versions = np.zeros(len(ids), np.int32)

    def add(self, ids: Sequence[str], answers: Sequence[Predicted]) -> None:
        for event_id, answer in zip(ids, answers, strict=True):
            if answer.decision is not None:
                self._decisions[self._row[event_id]] = answer.decision
            if answer.model is not None:
                self._versions[self._row[event_id]] = answer.model.version

    def f1(self, begin: timedelta, end: timedelta, clock: Clock) -> float:
        """F1 of the answered decisions for events in ``[begin, end)``; NaN without any positive."""
        origin = round(clock.start.timestamp() * 1000)
        low, high = (origin + each // timedelta(milliseconds=1) for each in (begin, end))
        asked = (self._times >= low) & (self._times < high) & (self._decisions >= 0)
        said, true = self._decisions[asked] == 1, self._truth[asked]
        positives = said.sum() + true.sum()
        return float(2 * (said & true).sum() / positives) if positives else float("nan")

    def served_by(self, version: int) -> int:
        return int((self._versions == version).sum())


@dataclass(frozen=True)
class Row:
    at: timedelta
    what: str
    detail: str


@dataclass
class Story:
    """The rows of the table, and what the demo promises to show."""

    clock: Clock
    drift_at: timedelta
    rows: list[Row]
    alerts: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    decisions: list[dict[str, Any]]
    figures: list[tuple[str, str]] = field(default_factory=list)
    errors: int = 0
    first_error: str = ""
    broken: int = 0

    @classmethod
    async def read(
        cls,
        http: httpx.AsyncClient,
        addresses: Addresses,
        pipeline: str,
        clock: Clock,
        *,
        drift_at: timedelta,
    ) -> Self:
        async def get(service: str, path: str) -> dict[str, Any]:
            url = f"{addresses.urls[service]}/v1/pipelines/{pipeline}/{path}"
            response = await http.get(url)
            response.raise_for_status()
            document: dict[str, Any] = response.json()
            return document

        alerts, runs, decisions = await asyncio.gather(
            get("drift", "alerts?limit=200"),
            get("trainer", "runs"),
            get("judge", "rollout/decisions?limit=1000"),
        )
        story = cls(clock, drift_at, [], alerts["alerts"], runs["runs"], decisions["decisions"])
        story.rows = sorted(
            [
                Row(drift_at, "drift", "device farms appear, stolen cards stop"),
                *(_alert(alert, clock) for alert in story.alerts),
                *(_run(run, clock) for run in story.runs),
                *(
                    _decision(decision, clock)
                    for decision in story.decisions
                    if decision["action"] not in PAUSES
                ),
            ],
            key=lambda row: row.at,
        )
        return story

    @property
    def healed_at(self) -> timedelta | None:
        """When a version that was trained after the drift became champion."""
        promotions = [
            self.clock.since(decision["at"])
            for decision in self.decisions
            if decision["action"] == "promoted"
        ]
        return min((at for at in promotions if at > self.drift_at), default=None)

    def tell_scores(self, scores: Scores, parts: Sequence[Part], *, broken: int) -> None:
        live, *_, last = parts
        healed = self.healed_at or live.end
        spans = (
            ("before the drift", live.begin, self.drift_at),
            ("drifted", self.drift_at, healed),
            ("healed", healed, live.end),
            ("under the broken model", live.end, last.end),
        )
        for name, begin, end in spans:
            if begin < end:
                f1 = scores.f1(begin, end, self.clock)
                self.figures.append((f"F1 {name} ({_days(begin)} to {_days(end)})", f"{f1:.2f}"))
        asked = sum(part.report.predictions for part in parts)
        self.errors = sum(part.report.errors for part in parts)
        problems = [part.report.first_error for part in parts if part.report.first_error]
        self.first_error = str(problems[0].get("detail", problems[0])) if problems else ""
        self.broken = broken
        self.figures += [
            ("predictions asked for", f"{asked:,}"),
            ("answered by the broken model", f"{scores.served_by(broken):,}"),
            ("user-visible errors", f"{self.errors:,}"),
        ]

    def problems(self) -> list[str]:
        """What the demo promised and did not show."""
        after = [row for row in self.alerts if self.clock.since(row["at"]) > self.drift_at]
        missing = {
            "the drift was not alarmed": not after,
            "no challenger was promoted": self.healed_at is None,
            "the broken model was not rolled back": not any(
                decision["action"] == "rolled_back" for decision in self.decisions
            ),
            f"{self.errors} predictions failed: {self.first_error}": self.errors > 0,
        }
        return [problem for problem, is_so in missing.items() if is_so]

    def table(self) -> str:
        timeline = Table("day", "what", "detail", box=SIMPLE, title="What happened, pipeline time")
        for row in self.rows:
            timeline.add_row(_days(row.at), row.what, row.detail)
        figures = Table(box=SIMPLE, show_header=False)
        for name, value in self.figures:
            figures.add_row(name, value)
        text = io.StringIO()
        console = Console(width=118, file=text, color_system=None)
        console.print(timeline, figures)
        return text.getvalue()


def _days(at: timedelta) -> str:
    hours, minutes = divmod(at.seconds // 60, 60)
    return f"{at.days:2d}d {hours:02d}:{minutes:02d}"


def _alert(alert: dict[str, Any], clock: Clock) -> Row:
    subjects = list(dict.fromkeys(finding["subject"] for finding in alert["findings"]))
    named = ", ".join(subjects[:MAX_FEATURES]) + (" …" if len(subjects) > MAX_FEATURES else "")
    return Row(clock.since(alert["at"]), f"alarm: {alert['kind']}", f"{alert['cause']}: {named}")


def _run(run: dict[str, Any], clock: Clock) -> Row:
    gates = (run.get("judged") or {}).get("gates") or []
    passed = sum(bool(gate["passed"]) for gate in gates)
    failed = ", ".join(gate["rule"] for gate in gates if not gate["passed"])
    detail = f"after {run['trigger']['kind']}"
    if gates:
        detail += f"; {passed} of {len(gates)} gates passed"
    if failed:
        detail += f", not: {failed}"
    elif run.get("reason"):
        detail += f"; {run['reason']}"
    name = f"version {run['version']}" if run.get("version") else run["state"]
    return Row(clock.since(run["triggered_at"]), f"trained: {name}", detail)


def _decision(decision: dict[str, Any], clock: Clock) -> Row:
    evidence = decision["evidence"]
    return Row(
        clock.since(decision["at"]),
        f"rollout: {decision['action'].replace('_', ' ')}",
        str(evidence.get("reason", "")),
    )
