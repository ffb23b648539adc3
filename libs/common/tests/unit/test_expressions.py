"""The expression language: vectorised, closed, and clear about what it does not have."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeostat.common.expressions import ExpressionError, Name, NameKind, compile_expression

NAMES = {
    "a": Name(NameKind.NUMBER),
    "b": Name(NameKind.NUMBER),
    "channel": Name(NameKind.CATEGORY, ("web", "pos")),
    "event_time": Name(NameKind.TIME),
}
NULL = math.nan


def value(text: str, **columns: Any) -> float:
    arrays = {name: np.array([column], np.float64) for name, column in columns.items()}
    (answer,) = compile_expression(text, NAMES).evaluate(arrays or {"a": np.zeros(1)})
    return float(answer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a + 2 * b", 7.0),
        ("-a % b", 2.0),
        ("a / 0", NULL),
        ("a < b and b < 4", 1.0),
        ("1 < a < 3", 0.0),
        ("not a == 1", 0.0),
        ("min(a, b) + max(a, b)", 4.0),
        ("clip(b, 0, 2)", 2.0),
        ("where(a > b, a, b)", 3.0),
        ("sqrt(-a)", NULL),
        ("abs(-b)", 3.0),
        ("is_null(a)", 0.0),
    ],
)
def test_arithmetic(text: str, expected: float) -> None:
    assert value(text, a=1, b=3) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a + b", NULL),
        ("a == a", NULL),
        ("a != b", NULL),
        ("b > 2 or a", 1.0),
        ("b > 5 and a", 0.0),
        ("b > 2 and a", NULL),
        ("not a", NULL),
        ("is_null(a)", 1.0),
        ("where(a, 1, 2)", NULL),
        ("max(a, b)", NULL),
    ],
)
def test_null_is_neither_true_nor_false(text: str, expected: float) -> None:
    assert value(text, a=NULL, b=3) == pytest.approx(expected, nan_ok=True)


def test_categories_are_compared_by_value_and_coded_by_place() -> None:
    assert value("channel == 'pos'", channel=1) == 1.0
    assert value("'web' != channel", channel=1) == 1.0
    assert value("code(channel)", channel=1) == 1.0


def test_hours_follow_the_zone_through_a_change_of_clocks() -> None:
    before, after = 1_711_846_800_000, 1_711_850_400_000  # 2024-03-31 01:00 and 02:00 UTC

    assert [value("hour(event_time, 'UTC')", event_time=t) for t in (before, after)] == [1, 2]
    berlin = [
        value("hour(event_time, 'Europe/Berlin')", event_time=t)
        for t in (before - 3_600_000, before, after)
    ]
    assert berlin == [1, 3, 4]
    assert value("weekday(event_time, 'UTC')", event_time=before) == 6


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("__import__('os')", "no function '__import__'"),
        ("a.real", "not part of the language"),
        ("a if b else a", "not part of the language"),
        ("[a]", "not part of the language"),
        ("lambda: a", "not part of the language"),
        ("a ** b", "not part of the language"),
        ("a +", "column"),
        ("c", "there is no 'c'"),
        ("sqrt(a, b)", "sqrt takes 1 arguments"),
        ("sqtr(a)", "did you mean 'sqrt'?"),
        ("channel + 1", "is a category"),
        ("event_time", "write hour(event_time, 'UTC')"),
        ("hour(event_time, 'Mars')", "no time zone 'Mars'"),
        ("hour(event_time, '../../etc/passwd')", "no time zone"),
        ("channel == 'wbe'", "did you mean 'web'?"),
        ("1e999", "not part of the language"),
        ("+".join(["a"] * 200), "parts"),
        ("(" * 2000, "longer than"),
    ],
)
def test_what_the_language_does_not_have_is_refused_with_its_place(text: str, told: str) -> None:
    with pytest.raises(ExpressionError) as refused:
        compile_expression(text, NAMES)

    assert told in str(refused.value)


@given(
    st.recursive(
        st.sampled_from(["a", "b", "1", "2.5"]),
        lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from("+-*"), inner),
        max_leaves=12,
    ),
    st.floats(-1e3, 1e3),
    st.floats(-1e3, 1e3),
)
def test_arithmetic_equals_pythons(text: str, a: float, b: float) -> None:
    expected = eval(text, {}, {"a": a, "b": b})  # noqa: S307 - the oracle; the text is ours

    assert value(text, a=a, b=b) == pytest.approx(expected)


@pytest.mark.parametrize("instant", [1e18, -1e18, math.inf, NULL])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_an_instant_that_no_calendar_holds_has_no_hour(instant: float, zone: str) -> None:
    assert math.isnan(value(f"hour(event_time, '{zone}')", event_time=instant))


@given(a=st.floats(allow_nan=False))
def test_log1p_is_the_one_of_the_c_library(a: float) -> None:
    finite = -1 < a < math.inf

    assert value("log1p(a)", a=a) == (math.log1p(a) if finite else pytest.approx(NULL, nan_ok=True))
