"""Measures agree with scikit-learn; a challenger that is no better does not pass."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as oracle

from homeostat.common.pipeline.spec import Cost, ThresholdSpec
from homeostat.trainer.evaluation import (
    at_threshold,
    choose_threshold,
    compare,
    improvement,
    measured,
    worst_slice,
)

ORACLES = {
    "average_precision": oracle.average_precision_score,
    "roc_auc": oracle.roc_auc_score,
    "log_loss": oracle.log_loss,
}


@pytest.mark.parametrize("metric", sorted(ORACLES))
@pytest.mark.parametrize("seed", range(5))
def test_weighted_metrics_equal_scikit_learns(metric: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = (generator.random(500) < 0.1).astype(float)
    scores = np.round(0.3 * labels + 0.6 * generator.random(500), 2)  # with ties
    weights = generator.integers(0, 4, 500).astype(float)

    ours = measured(metric, labels, scores)(weights)

    assert ours == pytest.approx(ORACLES[metric](labels, scores, sample_weight=weights))


def test_a_challenger_that_is_no_better_is_accepted_in_at_most_five_percent_of_cases() -> None:
    generator = np.random.default_rng(11)
    accepted = 0
    for simulation in range(200):
        labels = (generator.random(1200) < 0.1).astype(float)
        signal = 1.5 * labels
        challenger, champion = (signal + generator.normal(size=1200) for _ in range(2))
        comparison = compare(
            "average_precision",
            labels,
            challenger=challenger,
            champion=champion,
            seed=simulation,
            resamples=100,
        )
        accepted += comparison.lower > 0

    assert accepted <= 10


def test_a_clearly_better_challenger_is_told_with_its_interval() -> None:
    generator = np.random.default_rng(3)
    labels = (generator.random(3000) < 0.1).astype(float)
    good = 2.5 * labels + generator.normal(size=3000)
    poor = 1.0 * labels + generator.normal(size=3000)

    comparison = compare("average_precision", labels, challenger=good, champion=poor, seed=1)

    assert 0 < comparison.lower < comparison.estimate < comparison.upper
    assert comparison == compare(
        "average_precision", labels, challenger=good, champion=poor, seed=1
    )


def test_a_lower_log_loss_is_an_improvement() -> None:
    assert improvement("log_loss", 0.3, 0.4) == pytest.approx(0.25)
    assert improvement("roc_auc", 0.3, 0.4) == pytest.approx(-0.25)


def test_the_slice_that_is_hurt_is_found_behind_a_good_average() -> None:
    generator = np.random.default_rng(5)
    labels = (generator.random(4000) < 0.3).astype(float)
    channel = generator.integers(0, 4, 4000).astype(float)
    champion = labels + generator.normal(size=4000)
    challenger = np.where(channel == 2, generator.normal(size=4000), champion + labels)

    name, value = worst_slice(
        "average_precision",
        labels,
        challenger=challenger,
        champion=champion,
        columns={"channel": channel},
    )

    assert name == "channel = 2"
    assert value < -0.2


def test_a_threshold_by_cost_is_the_cheapest_of_all() -> None:
    generator = np.random.default_rng(7)
    labels = (generator.random(400) < 0.2).astype(float)
    scores = np.clip(0.4 * labels + 0.6 * generator.random(400), 0, 1)
    spec = ThresholdSpec(cost=Cost(false_positive=1, false_negative=20))

    def cost(threshold: float) -> float:
        decided = scores >= threshold
        return float((decided & (labels == 0)).sum() + 20 * (~decided & (labels == 1)).sum())

    chosen = choose_threshold(labels, scores, spec)

    assert cost(chosen) == min(cost(cut) for cut in [*scores, 1.01])


def test_a_threshold_by_f1_is_the_best_of_all() -> None:
    generator = np.random.default_rng(8)
    labels = (generator.random(400) < 0.2).astype(float)
    scores = np.clip(0.4 * labels + 0.6 * generator.random(400), 0, 1)

    chosen = choose_threshold(labels, scores, ThresholdSpec(metric="f1"))

    best = max(at_threshold(labels, scores, cut)["f1"] for cut in scores)
    assert at_threshold(labels, scores, chosen)["f1"] == best


def test_where_every_alarm_costs_too_much_nothing_is_flagged() -> None:
    labels = np.array([0.0, 0.0, 1.0])
    scores = np.array([0.9, 0.5, 0.1])
    spec = ThresholdSpec(cost=Cost(false_positive=100, false_negative=1))

    assert choose_threshold(labels, scores, spec) > 0.9
