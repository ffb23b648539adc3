"""What a backtest tells: one JSON document; instants in it are RFC 3339 texts."""

from __future__ import annotations

from typing import Any

import msgspec

from homeostat.common.clock import from_millis
from homeostat.common.schemas.alerts import Alert
from homeostat.common.schemas.models import Gate
from homeostat.router.judging import Decision
from homeostat.router.rollout import Rollout
from homeostat.sim.scorecard import Quality, Stretch
from homeostat.sim.training import Run


class AlertLine(msgspec.Struct, frozen=True):
    at: str
    kind: str
    cause: str
    version: int
    retrain: bool
    features: tuple[str, ...]
    message: str

    @classmethod
    def of(cls, alert: Alert) -> AlertLine:
        subjects = tuple(dict.fromkeys(finding.subject for finding in alert.findings))
        return cls(
            instant(alert.at),
            alert.kind,
            alert.cause,
            alert.version,
            alert.retrain,
            subjects,
            alert.message,
        )


class RunLine(msgspec.Struct, frozen=True):
    at: str
    cause: str
    message: str
    outcome: str
    version: int | None
    rows: int | None
    positives: int | None
    gates: tuple[Gate, ...]

    @classmethod
    def of(cls, run: Run) -> RunLine:
        evidence = run.evidence or {}
        rows, positives = evidence.get("rows"), evidence.get("positives")
        return cls(
            instant(run.at),
            run.trigger.kind,
            run.trigger.message,
            run.outcome,
            run.version,
            None if rows is None else int(rows),
            None if positives is None else int(positives),
            run.gates,
        )


class MoveLine(msgspec.Struct, frozen=True):
    """One decision of the judge, and where the rollout stood after it."""

    at: str
    action: str
    phase: str
    share: float
    champion: int | None
    challenger: int | None
    reason: str

    @classmethod
    def of(cls, move: tuple[int, Decision, Rollout]) -> MoveLine:
        at, decision, after = move
        return cls(
            instant(at),
            decision.action,
            after.phase,
            after.share,
            after.champion.version if after.champion else None,
            after.challenger.version if after.challenger else None,
            decision.reason,
        )


class StretchLine(msgspec.Struct, frozen=True):
    """``live``: the predictions as they were; ``static``: the first champion's, same rows."""

    start: str
    end: str
    rows: int
    positives: int
    live: Quality
    static: Quality

    @classmethod
    def of(cls, stretch: Stretch) -> StretchLine:
        return cls(
            instant(stretch.start),
            instant(stretch.end),
            stretch.rows,
            stretch.positives,
            stretch.live,
            stretch.static,
        )


class Report(msgspec.Struct, frozen=True):
    """One backtest. ``is_repeatable`` is false when seconds, not trials, ended a search: another
    machine may then find another model.
    """

    pipeline: str
    seed: int
    rows: int
    start: str | None
    end: str | None
    counts: dict[str, int]
    first_refusal: str | None
    alerts: tuple[AlertLine, ...]
    runs: tuple[RunLine, ...]
    rollouts: tuple[MoveLine, ...]
    stretches: tuple[StretchLine, ...]
    pooled: StretchLine | None
    is_repeatable: bool

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        return document


def instant(millis: int) -> str:
    return from_millis(millis).isoformat()
