"""The guard trips soon, and only for what the challenger did."""

from __future__ import annotations

import pytest

from homeostat.router.guard import MAX_CONSECUTIVE, Guard, Outcome


def after(*outcomes: Outcome) -> Guard:
    guard = Guard()
    for outcome in outcomes:
        guard = guard.after(outcome)
    return guard


@pytest.mark.parametrize("failure", [Outcome.ERROR, Outcome.TIMEOUT])
def test_five_failures_in_a_row_trip(failure: Outcome) -> None:
    assert after(*[failure] * (MAX_CONSECUTIVE - 1)).trip is None
    assert after(Outcome.OK, *[failure] * MAX_CONSECUTIVE).trip is not None


def test_half_of_the_requests_failing_trips_within_twenty() -> None:
    guard = after(*[Outcome.TIMEOUT, Outcome.OK] * 10)

    assert guard.trip == "10 of the last 20 requests failed"


def test_two_scores_that_are_no_probabilities_trip() -> None:
    assert after(Outcome.NON_FINITE).trip is None
    assert after(Outcome.NON_FINITE, Outcome.OK, Outcome.NON_FINITE).trip is not None


def test_single_failures_among_many_are_left_to_the_judge() -> None:
    guard = Guard()
    for number in range(1_000):
        guard = guard.after(Outcome.ERROR if number % 10 == 0 else Outcome.OK)
        assert guard.trip is None
