"""Policy over measured figures: which gates a challenger passes, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from homeostat.common.policy import Measure, Policy, Rule
from homeostat.common.schemas.models import Gate, VersionState

DIFFERENCES = frozenset(
    {
        Measure.IMPROVEMENT,
        Measure.IMPROVEMENT_LOWER,
        Measure.HISTORY_IMPROVEMENT,
        Measure.WORST_SLICE_IMPROVEMENT,
    }
)

Figures = Mapping[Measure, float]


class Verdict(msgspec.Struct, frozen=True):
    """``state`` is REFUSED, APPROVED, or REGISTERED where a person has the last word."""

    state: VersionState
    gates: tuple[Gate, ...]
    reason: str


def decide(policy: Policy, figures: Figures, *, waiver: str | None) -> Verdict:
    """Judge every rule, all of which must pass.

    ``waiver`` says why there is no champion to compare with; rules about differences are then
    waived. What was not measured is NaN and passes nothing.
    """
    gates = tuple(_gate(rule, figures, waiver) for rule in policy.rules)
    failed = [gate for gate in gates if not gate.passed]
    if failed:
        reasons = "; ".join(
            f"{gate.rule}: {gate.measure} is {_figure(gate.value)}, wanted {gate.bound}"
            for gate in failed
        )
        return Verdict(VersionState.REFUSED, gates, reasons)
    if policy.approval == "manual":
        return Verdict(VersionState.REGISTERED, gates, "passed every gate, waits for approval")
    return Verdict(VersionState.APPROVED, gates, "passed every gate")


def _gate(rule: Rule, figures: Figures, waiver: str | None) -> Gate:
    if waiver is not None and rule.measure in DIFFERENCES:
        return Gate(rule.name, rule.measure, None, f"waived: {waiver}", passed=True)
    value = figures.get(rule.measure, float("nan"))
    measured = None if value != value else value
    return Gate(rule.name, rule.measure, measured, _bound(rule), passed=rule.passes(value))


def _bound(rule: Rule) -> str:
    """
    >>> _bound(Rule(name="is small", measure=Measure.SIZE_BYTES, at_least=1, at_most=1e6))
    'at least 1 and at most 1e+06'
    """
    bounds = (("at least", rule.at_least), ("at most", rule.at_most))
    return " and ".join(f"{word} {value:g}" for word, value in bounds if value is not None)


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
