"""Each rule alone stops a challenger; a missing figure is no evidence."""

from __future__ import annotations

import pytest

from homeostat.common.policy import Measure, Policy, Rule
from homeostat.common.schemas.models import VersionState
from homeostat.trainer.governance import DIFFERENCES, decide

BOUNDS = {
    Measure.IMPROVEMENT: Rule(name="better", measure=Measure.IMPROVEMENT, at_least=0.01),
    Measure.IMPROVEMENT_LOWER: Rule(
        name="surely better", measure=Measure.IMPROVEMENT_LOWER, at_least=0.0
    ),
    Measure.HISTORY_IMPROVEMENT: Rule(
        name="keeps older data", measure=Measure.HISTORY_IMPROVEMENT, at_least=-0.2
    ),
    Measure.WORST_SLICE_IMPROVEMENT: Rule(
        name="hurts nobody", measure=Measure.WORST_SLICE_IMPROVEMENT, at_least=-0.1
    ),
    Measure.METRIC: Rule(name="is good", measure=Measure.METRIC, at_least=0.5),
    Measure.EVALUATION_ROWS: Rule(name="has rows", measure=Measure.EVALUATION_ROWS, at_least=1000),
    Measure.EVALUATION_POSITIVES: Rule(
        name="has positives", measure=Measure.EVALUATION_POSITIVES, at_least=50
    ),
    Measure.LATENCY_P99_SECONDS: Rule(
        name="is fast", measure=Measure.LATENCY_P99_SECONDS, at_most=0.05
    ),
    Measure.SIZE_BYTES: Rule(name="is small", measure=Measure.SIZE_BYTES, at_most=1e6),
    Measure.MISSING_SHARE: Rule(name="has values", measure=Measure.MISSING_SHARE, at_most=0.5),
}
GOOD = {
    Measure.IMPROVEMENT: 0.1,
    Measure.IMPROVEMENT_LOWER: 0.02,
    Measure.HISTORY_IMPROVEMENT: -0.05,
    Measure.WORST_SLICE_IMPROVEMENT: 0.0,
    Measure.METRIC: 0.7,
    Measure.EVALUATION_ROWS: 5000.0,
    Measure.EVALUATION_POSITIVES: 80.0,
    Measure.LATENCY_P99_SECONDS: 0.001,
    Measure.SIZE_BYTES: 2e5,
    Measure.MISSING_SHARE: 0.1,
}
BAD = {measure: -1.0 if rule.at_most is None else 2e9 for measure, rule in BOUNDS.items()}
POLICY = Policy(rules=tuple(BOUNDS.values()))


def test_every_measure_has_a_rule_in_these_tests() -> None:
    assert set(BOUNDS) == set(Measure)


def test_a_challenger_that_passes_every_rule_is_approved() -> None:
    verdict = decide(POLICY, GOOD, waiver=None)

    assert verdict.state is VersionState.APPROVED
    assert all(gate.passed for gate in verdict.gates)


@pytest.mark.parametrize("measure", list(Measure))
def test_each_rule_alone_refuses(measure: Measure) -> None:
    verdict = decide(POLICY, {**GOOD, measure: BAD[measure]}, waiver=None)

    assert verdict.state is VersionState.REFUSED
    assert [gate.measure for gate in verdict.gates if not gate.passed] == [measure]
    assert verdict.reason.startswith(BOUNDS[measure].name)


@pytest.mark.parametrize("measure", list(Measure))
def test_what_was_not_measured_passes_no_rule(measure: Measure) -> None:
    figures = {name: value for name, value in GOOD.items() if name is not measure}

    verdict = decide(POLICY, figures, waiver=None)

    assert verdict.state is VersionState.REFUSED
    assert "not measured" in verdict.reason


def test_without_a_champion_rules_on_differences_are_waived_and_say_so() -> None:
    figures = {name: value for name, value in GOOD.items() if name not in DIFFERENCES}

    verdict = decide(POLICY, figures, waiver="there is no champion")

    assert verdict.state is VersionState.APPROVED
    waived = {gate.measure for gate in verdict.gates if gate.bound.startswith("waived")}
    assert waived == set(DIFFERENCES)


def test_an_absolute_rule_holds_without_a_champion_too() -> None:
    verdict = decide(POLICY, {**GOOD, Measure.METRIC: 0.2}, waiver="there is no champion")

    assert verdict.state is VersionState.REFUSED


def test_manual_approval_registers_what_has_passed_and_refuses_what_has_not() -> None:
    manual = Policy(rules=POLICY.rules, approval="manual")

    assert decide(manual, GOOD, waiver=None).state is VersionState.REGISTERED
    assert decide(manual, BAD, waiver=None).state is VersionState.REFUSED
