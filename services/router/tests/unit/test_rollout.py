"""The state machine: what each verdict, trip and person may do, and what never happens."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from homeostat.common.pipeline.spec import ExperimentSpec, PhaseSpec, RolloutSpec
from homeostat.common.schemas.rollouts import Phase, Trip
from homeostat.router.rollout import (
    Candidate,
    Judgement,
    Rollout,
    Verdict,
    acknowledge,
    advance,
    crown,
    enqueue,
    pause,
    resume,
    stages,
    start,
)

MINUTE = 60_000
PROMOTE = Judgement(Verdict.PROMOTE, "within all limits")
ROLL_BACK = Judgement(Verdict.ROLL_BACK, "error rate")
CONTINUE = Judgement(Verdict.CONTINUE, "the hold is not over")
INSUFFICIENT = Judgement(Verdict.INSUFFICIENT, "12 of 200 scores")
GAP = Judgement(Verdict.INSUFFICIENT, "no ledger rows of the challenger", is_gap=True)

FIRST, SECOND, THIRD, FOURTH = (Candidate(version, f"digest-{version}") for version in (1, 2, 3, 4))


def spec(**members: Any) -> RolloutSpec:
    return RolloutSpec(**{"steps": [5, 25, 50, 100], "hold": "10m", **members})


def started(**members: Any) -> Rollout:
    """Version 2 has just begun beside champion 1, at time zero."""
    return start(crown(Rollout("shop"), FIRST, 0), SECOND, spec(**members), 0)


def climbed(rollout: Rollout, *, times: int) -> tuple[Rollout, int]:
    now = rollout.entered_at
    for _ in range(times):
        now += 10 * MINUTE
        rollout = advance(rollout, PROMOTE, now)
    return rollout, now


def test_rollout_passes_every_step_and_ends_as_champion_with_the_old_one_remembered() -> None:
    rollout, shares = started(), []

    while rollout.is_in_flight:
        shares.append(rollout.share)
        rollout, _ = climbed(rollout, times=1)

    assert shares == [0.05, 0.25, 0.5, 0.95]
    assert (rollout.phase, rollout.champion, rollout.previous, rollout.challenger) == (
        Phase.CHAMPION,
        SECOND,
        FIRST,
        None,
    )
    assert rollout.share == 0.0


def test_shadow_answers_nobody_and_experiment_skips_smaller_canary_steps() -> None:
    shadow = PhaseSpec(hold=timedelta(minutes=5))
    experiment = ExperimentSpec(hold=timedelta(minutes=5), share=0.3)

    stations = stages(spec(shadow=shadow, experiment=experiment))

    assert [(stage.phase, stage.share) for stage in stations] == [
        (Phase.SHADOW, 0.0),
        (Phase.EXPERIMENT, 0.3),
        (Phase.CANARY, 0.5),
        (Phase.CANARY, 1.0),
    ]


def test_shadow_is_announced_as_shadowing_with_no_share() -> None:
    rollout = started(shadow=PhaseSpec(hold=timedelta(minutes=5)))

    snapshot = rollout.snapshot(epoch=3)

    assert (snapshot.is_shadowing, snapshot.share, snapshot.epoch) == (True, 0.0, 3)


@pytest.mark.parametrize("judgement", [CONTINUE, INSUFFICIENT])
def test_without_a_promote_verdict_nothing_moves_however_long_it_takes(
    judgement: Judgement,
) -> None:
    rollout = started()

    after = advance(rollout, judgement, 10_000 * MINUTE)

    assert after is rollout


def test_promotion_waits_for_the_end_of_the_hold() -> None:
    rollout = started()

    early = advance(rollout, PROMOTE, 10 * MINUTE - 1)
    on_time = advance(rollout, PROMOTE, 10 * MINUTE)

    assert early is rollout
    assert on_time.share == 0.25


def test_roll_back_takes_all_units_back_and_refuses_the_digest_from_then_on() -> None:
    rollout, now = climbed(started(), times=2)

    after = advance(rollout, ROLL_BACK, now)

    assert (after.phase, after.share, after.champion) == (Phase.ROLLED_BACK, 0.0, FIRST)
    assert after.rejected == (SECOND.digest,)
    assert after.reason == "error rate"


def test_paused_rollout_ignores_promotion_but_obeys_a_roll_back() -> None:
    paused = pause(started(), "wait for the campaign", MINUTE)

    assert advance(paused, PROMOTE, 60 * MINUTE) is paused
    assert advance(paused, ROLL_BACK, 60 * MINUTE).phase is Phase.ROLLED_BACK


def test_time_spent_paused_does_not_count_as_held() -> None:
    paused = pause(started(), "lunch", 4 * MINUTE)
    resumed = resume(paused, "back", 64 * MINUTE)

    assert advance(resumed, PROMOTE, 69 * MINUTE) is resumed
    assert advance(resumed, PROMOTE, 70 * MINUTE).share == 0.25


def test_silent_arm_holds_and_after_the_deadline_the_champion_has_all_units() -> None:
    rollout = started(no_data_deadline="1h")

    held = advance(rollout, GAP, 10 * MINUTE)
    still_held = advance(held, GAP, 69 * MINUTE)
    after = advance(still_held, GAP, 70 * MINUTE)

    assert (held.share, held.gap_since) == (0.05, 10 * MINUTE)
    assert still_held is held
    assert (after.phase, after.share) == (Phase.ROLLED_BACK, 0.0)


def test_arm_that_reports_again_in_time_ends_the_gap() -> None:
    held = advance(started(), GAP, MINUTE)

    after = advance(held, CONTINUE, 2 * MINUTE)

    assert (after.gap_since, after.is_in_flight) == (None, True)


def test_version_that_comes_during_a_canary_waits_and_a_newer_one_takes_its_place() -> None:
    waiting = enqueue(started(), THIRD, MINUTE)

    replaced = enqueue(waiting, FOURTH, 2 * MINUTE)

    assert (replaced.challenger, replaced.queued) == (SECOND, FOURTH)
    assert replaced.reason == "version 4 waits for the rollout in flight, instead of 3"


def test_trip_rolls_back_and_is_listed_as_seen_so_that_routers_may_forget_it() -> None:
    rollout = started()
    trip = Trip("shop", rollout.id, 2, "5 failures in a row", 7, "router-a")

    after = acknowledge(rollout, trip, MINUTE)

    assert (after.phase, after.seen_trips) == (Phase.ROLLED_BACK, (trip.key,))
    assert acknowledge(after, trip, MINUTE) is after


def test_trip_of_an_earlier_rollout_changes_nothing() -> None:
    rollout = started()
    trip = Trip("shop", "shop-2-1", 2, "late", 7, "router-a")

    assert acknowledge(rollout, trip, MINUTE) is rollout


def test_second_attempt_of_a_version_is_another_experiment() -> None:
    rolled_back = advance(started(), ROLL_BACK, MINUTE)

    again = start(rolled_back, SECOND, spec(), 2 * MINUTE)

    assert again.id != rolled_back.id
    assert again.seen_trips == ()
