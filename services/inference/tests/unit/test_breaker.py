"""The breaker leaves a dependency alone after failures, and lets one call at a time try again."""

from __future__ import annotations

from datetime import timedelta

from homeostat.inference.breaker import Breaker


def test_it_opens_after_failures_in_a_row_and_closes_after_a_success() -> None:
    now = 100.0
    breaker = Breaker(failures=2, open_for=timedelta(seconds=1), monotonic=lambda: now)

    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert breaker.allows()

    breaker.failed()
    assert not breaker.allows()

    now = 101.0
    assert [breaker.allows(), breaker.allows()] == [True, False]  # one trial, the others wait

    breaker.succeeded()
    assert breaker.allows()
