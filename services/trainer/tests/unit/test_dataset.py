"""Only ripe labels teach; rows that can teach nothing are refused with the reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import Pipeline
from homeostat.common.pipeline.spec import TrainingSpec
from homeostat.trainer.dataset import Examples, Refused, check, load, missing_share

DAY = 86_400_000
AS_OF = 100 * DAY
TRAINING = TrainingSpec(min_rows=100, min_positives=10)


@pytest.fixture
def toy() -> Pipeline:
    return Pipeline.model_validate(
        {
            "name": "toy",
            "owner": "tests",
            "source": {
                "id": "id",
                "time": "ts",
                "key": "id",
                "label": {"field": "y", "maturity": "7d", "absent": 0},
            },
            "unit": "id",
            "fields": {"id": "string", "a": "float"},
            "features": {"a": {"expression": "a"}},
        }
    )


def write(root: Path, toy: Pipeline, rows: list[tuple[str, int, int | None]]) -> None:
    """Rows of (id, day of the event, day at which its fraud becomes known)."""
    times = np.array([day * DAY for _, day, _ in rows])
    vectors = {
        "id": [name for name, _, _ in rows],
        "event_time": times,
        "intake": times,
        "source_partition": np.zeros(len(rows), np.int32),
        "offset": np.arange(len(rows)),
        "definition_hash": [FeatureView(toy).definition_hash] * len(rows),
        "value:a": np.arange(len(rows), dtype=float),
    }
    known = [(name, day, found) for name, day, found in rows if found is not None]
    outcomes = {
        "id": [name for name, _, _ in known],
        "event_time": np.array([day * DAY for _, day, _ in known]),
        "label": np.ones(len(known)),
        "available_at": np.array([found * DAY for _, _, found in known]),
        "version": np.ones(len(known), np.int32),
    }
    for table, columns in (("vectors", vectors), ("outcomes", outcomes)):
        path = root / "toy" / table
        path.mkdir(parents=True)
        write_deltalake(str(path), pa.table(columns))


def examples(*, rows: int = 200, positives: int = 40) -> Examples:
    generator = np.random.default_rng(1)
    labels = generator.permutation((np.arange(rows) < positives).astype(float))
    values = generator.normal(size=(rows, 2))
    return Examples(("a", "b"), "h", np.arange(rows), values, labels, "digest")


def test_unripe_events_and_labels_from_the_future_teach_nothing(
    tmp_path: Path, toy: Pipeline
) -> None:
    write(
        tmp_path,
        toy,
        [
            ("ripe fraud", 90, 95),
            ("ripe, no label came", 91, None),
            ("ripe, but its fraud is found later", 92, 101),
            ("unripe fraud that was found early", 98, 99),
        ],
    )

    found = load(tmp_path, toy, {"vectors": 0, "outcomes": 0}, as_of=AS_OF)

    assert found.times.tolist() == [90 * DAY, 91 * DAY, 92 * DAY]
    assert found.labels.tolist() == [1.0, 0.0, 0.0]


def test_rows_older_than_the_longest_history_are_not_read(tmp_path: Path, toy: Pipeline) -> None:
    # With a fifth held out, eight days of training rows are ten days of rows.
    training = TrainingSpec.model_validate({"history": ["8d", "4d"], "holdout": "20%"})
    bounded = toy.model_copy(update={"training": training})
    write(tmp_path, toy, [(f"day {day}", day, day + 1) for day in range(80, 93)])

    found = load(tmp_path, bounded, {"vectors": 0, "outcomes": 0}, as_of=AS_OF)

    assert [time // DAY for time in found.times.tolist()] == list(range(83, 93))


def test_a_store_without_tables_is_a_refusal(tmp_path: Path, toy: Pipeline) -> None:
    with pytest.raises(Refused, match="no vectors and no outcomes yet"):
        load(tmp_path, toy, {}, as_of=AS_OF)


def test_good_rows_are_accepted() -> None:
    check(examples(), TRAINING)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (examples().take(slice(0, 0)), "no mature labelled rows"),
        (examples(rows=99), "99 mature rows, training.min_rows is 100"),
        (examples(positives=0), "all 200 mature rows have the label 0"),
        (examples(positives=200), "all 200 mature rows have the label 1"),
        (examples(positives=9), "9 mature rows of the rarer class"),
        (replace(examples(), values=np.full((200, 2), np.nan)), "every feature of every row"),
    ],
    ids=["empty", "few", "no positive", "no negative", "scarce", "null"],
)
def test_rows_that_can_teach_nothing_are_refused(bad: Examples, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        check(bad, TRAINING)


def test_a_column_that_is_made_from_the_label_is_refused_by_name() -> None:
    leaky = examples()
    leaky.values[:, 1] = -leaky.labels

    with pytest.raises(Refused, match="b alone tells the label"):
        check(leaky, TRAINING)


def test_the_feature_that_is_null_most_often_is_named() -> None:
    rows = examples()
    rows.values[:50, 1] = np.nan

    assert missing_share(rows) == ("b", 0.25)
