"""Predictions and labels meet, whichever comes first, once and with the newest correction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from homeostat.common.schemas.labels import Outcome
from homeostat.common.schemas.ledger import LedgerBatch
from homeostat.drift import joins
from homeostat.drift.columns import Outcomes, Predictions, outcomes_of, read_predictions
from homeostat.drift.joins import Slice, add_outcomes, add_predictions, mature_rows

HOUR = 3_600_000


def rows_of(slices: dict[int, Slice], absent: float | None = 0.0) -> dict[int, Any]:
    numbers = slices.keys()
    rows = mature_rows(slices, first=min(numbers), last=max(numbers), version=1, absent=absent)
    return {int(row["key"]): row["label"].item() for row in rows}


def traffic_of(traffic: Any, hours: range) -> tuple[Predictions, list[Outcome]]:
    predictions, outcomes = [], []
    for number in hours:
        some, known = traffic.hour(number)
        predictions += some
        outcomes += known
    rows, refused = read_predictions(list(LedgerBatch.of(predictions).encode()))
    assert not refused
    return rows, outcomes


def predicted(slices: dict[int, Slice], rows: Predictions) -> dict[int, Slice]:
    return add_predictions(slices, rows, width=HOUR, oldest=0)[0]


def labelled(slices: dict[int, Slice], rows: Outcomes) -> dict[int, Slice]:
    return add_outcomes(slices, rows, width=HOUR, oldest=0)[0]


def test_labels_may_come_before_their_predictions(traffic: Any) -> None:
    rows, found = traffic_of(traffic, range(3))
    outcomes = outcomes_of(found)

    after = labelled(predicted({}, rows), outcomes)
    before = predicted(labelled({}, outcomes), rows)

    assert rows_of(before) == rows_of(after)
    assert sum(rows_of(after).values()) == len(found)


def test_an_event_scored_twice_counts_once(traffic: Any) -> None:
    rows, _ = traffic_of(traffic, range(2))
    slices, first = add_predictions({}, rows, width=HOUR, oldest=0)

    again, second = add_predictions(slices, rows, width=HOUR, oldest=0)

    assert first.all()
    assert not second.any()
    assert rows_of(again) == rows_of(slices)


def test_the_newest_correction_holds_in_any_order(traffic: Any) -> None:
    rows, found = traffic_of(traffic, range(1))
    fix = Outcome(found[0].id, 0.0, found[0].event_time, found[0].available_at + 1, {}, version=2)

    in_order = labelled(labelled(predicted({}, rows), outcomes_of(found)), outcomes_of([fix]))
    reversed_ = labelled(labelled(predicted({}, rows), outcomes_of([fix])), outcomes_of(found))
    at_once = labelled(predicted({}, rows), outcomes_of([fix, *found]))

    assert rows_of(in_order) == rows_of(reversed_) == rows_of(at_once)
    assert sum(rows_of(in_order).values()) == len(found) - 1


def test_events_without_a_label_are_left_out_where_the_pipeline_says_so(traffic: Any) -> None:
    rows, found = traffic_of(traffic, range(1))

    slices = labelled(predicted({}, rows), outcomes_of(found))

    assert len(rows_of(slices, absent=None)) == len(found)
    assert len(rows_of(slices, absent=0.0)) == len(rows)


def test_a_crowded_slice_keeps_the_same_sample_of_predictions_and_labels(
    traffic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joins, "SLICE_ROWS", 100)
    rows, found = traffic_of(traffic, range(1))

    slices = labelled(predicted({}, rows), outcomes_of(found))

    (only,) = slices.values()
    assert 25 <= len(only.rows) <= 100
    positives = {int(key) for key in outcomes_of(found).key}
    assert rows_of(slices) == {int(key): float(key in positives) for key in only.rows["key"]}
    assert np.all(only.keeps(only.rows["key"]))


def test_labels_older_than_what_is_kept_are_counted_as_late(traffic: Any) -> None:
    _, found = traffic_of(traffic, range(1))

    slices, late = add_outcomes(
        {}, outcomes_of(found), width=HOUR, oldest=found[0].event_time // HOUR + 1
    )

    assert (slices, late) == ({}, len(found))
