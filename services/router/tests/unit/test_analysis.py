"""What the observations of both arms amount to."""

from __future__ import annotations

import math

import numpy as np
import pytest

from homeostat.common.assignment import Variant
from homeostat.common.pipeline.spec import Guardrails, RolloutSpec
from homeostat.common.schemas.exposures import Exposure
from homeostat.router.analysis import Arm, Lens, Observation, Row, judge
from homeostat.router.rollout import Candidate, Rollout, Verdict, crown, start
from homeostat.router.sequential import log_evidence_above

GUARDRAILS = Guardrails()
HOLD_MS = 600_000
BUCKET_MS = HOLD_MS // 20
ROLLOUT = start(
    crown(Rollout("shop"), Candidate(1, "one"), 0),
    Candidate(2, "two"),
    RolloutSpec(steps=[50, 100], hold="10m", min_samples=100),  # type: ignore[arg-type] # as in a file
    0,
)
LENS = Lens.of(ROLLOUT, GUARDRAILS, "request")


def rows(variant: Variant, count: int, *, errors: int = 0, slow: int = 0, at: int = 0) -> list[Row]:
    return [
        Row(
            ROLLOUT.id,
            variant.value,
            "request",
            at,
            None if number < errors else 0.25,
            900_000 if number < slow else 2_000,
            "failed" if number < errors else None,
        )
        for number in range(count)
    ]


def verdict(observation: Observation, *, now: int = HOLD_MS) -> tuple[Verdict, str]:
    judgement = judge(ROLLOUT, observation, GUARDRAILS, BUCKET_MS, now)
    return judgement.verdict, judgement.reason


def observe(challenger: list[Row], control: list[Row]) -> Observation:
    return LENS.observe(challenger + control)


def test_two_healthy_arms_promote_after_the_hold() -> None:
    seen = observe(rows(Variant.CHALLENGER, 100), rows(Variant.CHAMPION, 100))

    assert verdict(seen, now=HOLD_MS - 1)[0] is Verdict.CONTINUE
    assert verdict(seen) == (Verdict.PROMOTE, "within all limits over 100 scores")


def test_too_few_scores_of_either_arm_are_insufficient() -> None:
    few = observe(rows(Variant.CHALLENGER, 99), rows(Variant.CHAMPION, 100))
    lonely = observe(rows(Variant.CHALLENGER, 100), rows(Variant.CHAMPION, 3))

    assert verdict(few) == (Verdict.INSUFFICIENT, "the challenger has 99 of 100 scores")
    assert verdict(lonely) == (Verdict.INSUFFICIENT, "the champion has 3 of 100 scores")


def test_error_rate_beyond_doubt_rolls_back_before_the_hold_is_over() -> None:
    seen = observe(rows(Variant.CHALLENGER, 100, errors=20), rows(Variant.CHAMPION, 100))

    assert verdict(seen, now=1) == (Verdict.ROLL_BACK, "error rate 20.00% is above 1.00%")


def test_slow_challenger_rolls_back_by_its_p99() -> None:
    seen = observe(rows(Variant.CHALLENGER, 200, slow=30), rows(Variant.CHAMPION, 200))

    decided, reason = verdict(seen)

    assert decided is Verdict.ROLL_BACK
    assert reason.endswith("ms is above 200 ms")


def test_hard_limit_needs_its_minimum_of_samples() -> None:
    seen = observe(rows(Variant.CHALLENGER, 99, errors=99), rows(Variant.CHAMPION, 99))

    assert verdict(seen)[0] is Verdict.INSUFFICIENT


def test_both_arms_failing_points_to_a_shared_cause_and_holds() -> None:
    seen = observe(rows(Variant.CHALLENGER, 100, errors=30), rows(Variant.CHAMPION, 100, errors=25))

    decided, reason = verdict(seen)

    assert decided is Verdict.INSUFFICIENT
    assert "the control too: hold" in reason


def test_failing_champion_promotes_nobody() -> None:
    seen = observe(rows(Variant.CHALLENGER, 100), rows(Variant.CHAMPION, 100, errors=40))

    assert verdict(seen)[0] is Verdict.INSUFFICIENT


def test_rate_above_its_limit_without_evidence_yet_continues() -> None:
    seen = observe(rows(Variant.CHALLENGER, 100, errors=2), rows(Variant.CHAMPION, 100))

    assert verdict(seen) == (Verdict.CONTINUE, "the error rate is above its limit so far")


@pytest.mark.parametrize("silent", [Variant.CHALLENGER, Variant.CHAMPION])
def test_arm_that_falls_silent_while_the_other_goes_on_is_a_gap(silent: Variant) -> None:
    other = Variant.CHAMPION if silent is Variant.CHALLENGER else Variant.CHALLENGER
    early = LENS.observe(rows(silent, 200) + rows(other, 200))
    late = early.merged(LENS.observe(rows(other, 50, at=2 * BUCKET_MS)))

    judgement = judge(ROLLOUT, late, GUARDRAILS, BUCKET_MS, HOLD_MS)

    assert (judgement.verdict, judgement.is_gap) == (Verdict.INSUFFICIENT, True)
    assert silent.value in judgement.reason


def test_exposures_without_ledger_rows_are_a_gap() -> None:
    exposures = [
        Exposure(str(number), "u", ROLLOUT.id, 1, Variant.CHALLENGER, Variant.CHALLENGER, 2, 1, 0.5)
        for number in range(50)
    ]

    judgement = judge(ROLLOUT, LENS.observe([], exposures), GUARDRAILS, BUCKET_MS, HOLD_MS)

    assert judgement.is_gap


def test_no_traffic_at_all_is_no_gap() -> None:
    judgement = judge(ROLLOUT, Observation(), GUARDRAILS, BUCKET_MS, 100 * HOLD_MS)

    assert (judgement.verdict, judgement.is_gap) == (Verdict.INSUFFICIENT, False)


def test_fallbacks_that_only_the_router_saw_count_as_errors() -> None:
    exposures = [
        Exposure(
            str(number),
            "u",
            ROLLOUT.id,
            1,
            Variant.CHALLENGER,
            Variant.CHAMPION if number < 60 else Variant.CHALLENGER,
            1,
            1,
            0.5,
            "timeout" if number < 60 else "assigned",
        )
        for number in range(200)
    ]
    seen = LENS.observe(rows(Variant.CHALLENGER, 140) + rows(Variant.CHAMPION, 200), exposures)

    assert verdict(seen)[0] is Verdict.ROLL_BACK
    assert seen.challenger.error_rate == 0.3


def test_rows_of_other_rollouts_paths_and_earlier_stages_are_not_counted() -> None:
    lens = Lens(ROLLOUT.id, "request", since=100, slow_us=1, bucket_ms=1)
    strangers = [
        Row("another", "challenger", "request", 200, 0.5),
        Row(ROLLOUT.id, "challenger", "stream", 200, 0.5),
        Row(ROLLOUT.id, "challenger", "request", 99, 0.5),
    ]

    assert lens.observe(strangers) == Observation()


def test_merging_is_the_same_as_counting_at_once() -> None:
    first, second = rows(Variant.CHALLENGER, 30, errors=3), rows(Variant.CHAMPION, 20, slow=2, at=7)

    assert LENS.observe(first).merged(LENS.observe(second)) == LENS.observe(first + second)


def test_p99_lies_within_a_tenth_of_the_exact_one() -> None:
    latencies = np.random.default_rng(5).lognormal(8, 0.7, 5_000).astype(int)
    seen = LENS.observe(
        Row(ROLLOUT.id, "challenger", "request", 0, 0.5, int(latency)) for latency in latencies
    )

    exact = float(np.quantile(latencies, 0.99)) / 1000
    assert seen.challenger.p99_ms == pytest.approx(exact, rel=0.12)


def test_two_hundred_healthy_rollouts_at_the_very_limit_are_hardly_ever_rolled_back() -> None:
    """Both arms err at the limit itself, the hardest healthy case, and are looked at 100 times."""
    random = np.random.default_rng(11)
    rolled_back = 0
    for _ in range(200):
        seen = Observation()
        for _ in range(100):
            errors = random.binomial(50, GUARDRAILS.error_rate.maximum, size=2).tolist()
            arms = [Arm(samples=50, errors=count) for count in errors]
            seen = seen.merged(Observation(challenger=arms[0], control=arms[1]))
            if verdict(seen, now=1)[0] is Verdict.ROLL_BACK:
                rolled_back += 1
                break

    # alpha is 0.001 per limit: of 200 rollouts 0.2 are expected at most, 2 or fewer in 99.8 %.
    assert rolled_back <= 2


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
def test_harm_is_seen_within_a_stated_number_of_requests(rate: float) -> None:
    """Median over 200 runs: 5 % errors against a limit of 1 % within 300 requests."""
    random = np.random.default_rng(3)
    needed = []
    for _ in range(200):
        hits = np.cumsum(random.random(2_000) < rate)
        needed.append(
            next(
                seen
                for seen in range(1, 2_000)
                if log_evidence_above(0.01, hits=int(hits[seen - 1]), samples=seen) > math.log(1000)
            )
        )

    assert np.median(needed) <= 300
