"""A scorer gives XGBoost's own scores, and refuses whatever was not announced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from homeostat.common.pipeline import Pipeline
from homeostat.common.schemas.models import Golden
from homeostat.inference.scorer import ModelRefused, XgboostScorer, load, unusable

Workshop = Any


@pytest.fixture
def pipeline(make_pipeline: Callable[..., Pipeline]) -> Pipeline:
    return make_pipeline("fraud")


def test_scores_are_those_of_xgboost_also_with_missing_values(
    workshop: Workshop, pipeline: Pipeline
) -> None:
    trained = workshop.train(pipeline, 1)
    random = np.random.default_rng(5)
    values = random.normal(20, 30, (500, 4))
    values[random.random(values.shape) < 0.3] = np.nan

    scores = load(trained.version, trained.content).score(values)

    assert np.array_equal(scores, trained.expected(values))


def test_a_golden_score_that_differs_refuses_the_file(
    workshop: Workshop, pipeline: Pipeline
) -> None:
    trained = workshop.train(pipeline, 1)
    other = workshop.train(pipeline, 2)

    with pytest.raises(ModelRefused, match="golden vector"):
        load(msgspec.structs.replace(trained.version, golden=other.version.golden), trained.content)


def test_a_version_without_golden_vectors_is_refused(
    workshop: Workshop, pipeline: Pipeline
) -> None:
    trained = workshop.train(pipeline, 1)

    with pytest.raises(ModelRefused, match="without golden vectors"):
        load(msgspec.structs.replace(trained.version, golden=Golden((), ())), trained.content)


@pytest.mark.parametrize(
    "features",
    [
        ("customer_mean_1h", "amount_now", "customer_count_1h", "terminal_count_1h"),
        ("amount_now", "customer_mean_1h", "customer_count_1h"),
        ("amount_now", "customer_mean_1h", "customer_count_1h", "terminal_rate_1h"),
    ],
    ids=["swapped", "too few", "renamed"],
)
def test_other_columns_than_announced_are_refused(
    workshop: Workshop, pipeline: Pipeline, features: tuple[str, ...]
) -> None:
    with pytest.raises(ModelRefused, match="columns"):
        XgboostScorer(workshop.train(pipeline, 1).content, features)


def test_only_the_json_format_is_parsed(workshop: Workshop, pipeline: Pipeline) -> None:
    trained = workshop.train(pipeline, 1)

    with pytest.raises(ModelRefused, match="JSON"):
        XgboostScorer(bytes(trained.booster.save_raw("ubj")), trained.version.features)
    with pytest.raises(ModelRefused, match="cannot read"):
        XgboostScorer(trained.content[: len(trained.content) // 2], trained.version.features)


def test_infinities_and_what_overflows_single_precision_are_unusable() -> None:
    values = np.array([[1.0, np.nan], [np.inf, 0.0], [1e300, 0.0], [0.0, -3.5e38], [3.4e38, 0.0]])

    assert unusable(values).tolist() == [False, True, True, True, False]
