"""What entity rows of the online store say: their values, statuses and ages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeostat.common.feature_store import online, reading
from homeostat.common.feature_store.online import Progress, newest_event_time
from homeostat.common.feature_store.reading import Lookup, OnlineAnswer, OnlineRows, blank_columns
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.instants import MAX_MILLIS
from homeostat.common.pipeline import Pipeline
from homeostat.common.windows import Status

NOW = 1_700_000_000_000
STALE_AFTER = timedelta(seconds=30)

PIPELINE = Pipeline.model_validate(
    {
        "name": "cards",
        "owner": "tests",
        "source": {
            "id": "id",
            "time": "at",
            "key": "card",
            "label": {"field": "bad", "maturity": "1d"},
        },
        "unit": "card",
        "fields": {"id": "string", "card": "string", "amount": {"type": "decimal", "scale": 0.01}},
        "features": {
            "card_sum": {"entity": "card", "aggregate": "sum(amount)", "window": "sliding 1h"},
            "card_count": {
                "entity": "card",
                "aggregate": "count()",
                "window": "sliding 1h",
                "missing": 0,
            },
            "doubled": {"expression": "card_sum * 2"},
            "ratio": {"expression": "amount / card_sum", "default": 1},
        },
    }
)
VIEW = FeatureView(PIPELINE)
FOLD = VIEW.folds["card"]


def row(*times: int) -> bytes:
    """The packed row of a card that paid 1.50 at each of the times."""
    state = FOLD.new_state()
    rows = state.intern(["c"] * len(times))
    columns = {"amount": [1.5] * len(times)}
    FOLD.fold_events(state, rows, FOLD.events([*times], range(len(times)), columns))
    [packed] = FOLD.pack(state, rows[:1])
    return packed


def read(
    rows: Mapping[str, bytes | None], *, age: timedelta | None, view: FeatureView = VIEW
) -> OnlineAnswer:
    """Cards read now; ``age`` is that of the partition's progress, None: there is none."""
    lookup = Lookup(
        view,
        blank_columns(PIPELINE, [NOW] * len(rows)),
        {"card": [*rows]},
        np.zeros(len(rows), np.bool_),
    )
    reader = OnlineRows(partitions=1, stale_after=STALE_AFTER, wall_millis=lambda: NOW)
    places = reader.places(lookup)
    stored = dict.fromkeys(reading.wanted([places]))
    for key, packed in rows.items():
        stored[online.row_key("cards", VIEW.definition_hash, "card", key)] = packed
    if age is not None:
        progress = Progress(1, 1, NOW - round(age.total_seconds() * 1000), NOW)
        progress_key = online.progress_key("cards", VIEW.definition_hash, "card", 0)
        stored[progress_key] = online.encode_progress(progress)
    return reader.evaluate(lookup, places, stored)


def names(answer: OnlineAnswer, number: int = 0) -> list[str]:
    return [reading.STATUS_NAMES[code] for code in answer.vectors.statuses[number].tolist()]


def test_values_are_evaluated_now_and_expressions_over_event_fields_are_null() -> None:
    answer = read({"c": row(NOW - 1000, NOW - 2000)}, age=timedelta(seconds=2))

    assert answer.vectors.values[0].tolist() == [3.0, 2.0, 6.0, 1.0]
    assert names(answer) == ["present", "present", "present", "null"]
    assert (answer.ages_ms.tolist(), answer.is_degraded.tolist()) == ([2000], [False])


def test_what_lags_behind_is_stale_and_keeps_its_value() -> None:
    answer = read({"c": row(NOW - 1000)}, age=STALE_AFTER + timedelta(seconds=1))

    assert answer.vectors.values[0].tolist()[:2] == [1.5, 1.0]
    assert names(answer)[:2] == ["stale", "stale"]


def test_what_lags_behind_is_taken_for_missing_where_the_file_says_so() -> None:
    features = {
        name: spec.model_copy(update={"stale": "missing"}) if name.startswith("card") else spec
        for name, spec in PIPELINE.features.items()
    }
    view = FeatureView(PIPELINE.model_copy(update={"features": features}))
    assert view.definition_hash == VIEW.definition_hash

    fresh, late = (
        read({"c": row(NOW - 1000)}, age=STALE_AFTER + timedelta(seconds=seconds), view=view)
        for seconds in (-1, 1)
    )

    assert fresh.vectors.values[0].tolist()[:2] == [1.5, 1.0]
    np.testing.assert_array_equal(late.vectors.values[0], [np.nan, 0.0, np.nan, 1.0])
    assert names(late)[:2] == ["stale", "stale"]


def test_a_row_that_is_absent_under_old_progress_may_be_there_by_now() -> None:
    answer = read({"c": None}, age=STALE_AFTER + timedelta(seconds=1))

    assert names(answer)[:2] == ["unavailable", "unavailable"]
    assert answer.is_degraded.tolist() == [True]


def test_a_row_read_long_before_its_events_is_degraded() -> None:
    answer = read({"c": row(NOW + 10 * 86_400_000)}, age=timedelta(0))

    assert names(answer)[:2] == ["unavailable", "unavailable"]
    assert answer.is_degraded.tolist() == [True]


def test_a_row_that_is_absent_under_fresh_progress_is_missing() -> None:
    answer = read({"c": None}, age=timedelta(0))

    assert np.isnan(answer.vectors.values[0, 0])
    assert answer.vectors.values[0, 1] == 0.0, "the declared stand-in"
    assert names(answer)[:2] == ["missing", "missing"]
    assert not answer.is_degraded.any()


def test_without_progress_nobody_knows_what_is_missing() -> None:
    answer = read({"c": row(NOW)}, age=None)

    assert names(answer)[:2] == ["unavailable", "unavailable"]
    assert answer.is_lost["card"].tolist() == [True]


@pytest.mark.parametrize("damaged", [b"garbage", row(NOW)[:-1], b"\xff" * 40], ids=repr)
def test_a_damaged_row_loses_itself_alone(damaged: bytes) -> None:
    answer = read({"a": row(NOW), "b": damaged, "c": row(NOW)}, age=timedelta(0))

    assert answer.is_degraded.tolist() == [False, True, False]
    assert names(answer, 1)[:2] == ["unavailable", "unavailable"]
    assert answer.vectors.values[:, 0].tolist() == pytest.approx([1.5, math.nan, 1.5], nan_ok=True)


def test_without_a_store_everything_that_comes_from_it_is_unavailable() -> None:
    lookup = Lookup(VIEW, blank_columns(PIPELINE, [NOW]), {"card": ["c"]}, np.zeros(1, np.bool_))

    answer = reading.unavailable(lookup)

    assert answer.vectors.statuses[0, :2].tolist() == [Status.UNAVAILABLE] * 2
    assert answer.is_degraded.tolist() == [True]


def test_no_rows_are_answered_with_none() -> None:
    assert read({}, age=timedelta(0)).vectors.values.shape == (0, 4)


@given(st.lists(st.integers(0, MAX_MILLIS), min_size=1, max_size=5))
def test_newest_event_time_is_read_from_the_packed_row(times: list[int]) -> None:
    assert newest_event_time(row(*times)) == max(times)
