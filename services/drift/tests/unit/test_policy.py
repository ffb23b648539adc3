"""Hysteresis: when an incident opens, repeats and closes."""

from __future__ import annotations

from collections.abc import Iterable

from homeostat.drift.policy import Incident, Rules, observe

AMOUNT, VISITS = frozenset({"amount"}), frozenset({"visits"})
CLEAN: frozenset[str] = frozenset()
RULES = Rules(consecutive=2, cooldown=5, renewal=50)


def alerts(observations: Iterable[frozenset[str]], rules: Rules = RULES) -> list[int]:
    """The windows, numbered from 0, after which an alert was due."""
    incident, due = Incident(), []
    for number, subjects in enumerate(observations):
        incident, is_due = observe(incident, rules, subjects, start=number, at=number)
        if is_due:
            due.append(number)
    return due


def test_one_drifted_window_is_not_an_incident() -> None:
    assert alerts([AMOUNT, CLEAN] * 20) == []


def test_two_windows_with_different_features_are_not_an_incident() -> None:
    assert alerts([AMOUNT, VISITS] * 20) == []


def test_a_flapping_feature_is_one_incident() -> None:
    assert alerts([AMOUNT, AMOUNT, CLEAN] * 15) == [1]


def test_a_lasting_incident_is_repeated_after_its_renewal() -> None:
    assert alerts([AMOUNT] * 110) == [1, 51, 101]


def test_a_closed_incident_opens_again_only_after_the_cooldown() -> None:
    assert alerts([AMOUNT, AMOUNT, CLEAN, CLEAN, AMOUNT, AMOUNT, AMOUNT, AMOUNT]) == [1, 6]
