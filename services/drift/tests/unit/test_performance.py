"""Metrics against scikit-learn, intervals against their promise."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from homeostat.drift.performance import METRICS, measure

ORACLES = {
    "f1": lambda label, score: metrics.f1_score(label, score > 0.5),
    "precision": lambda label, score: metrics.precision_score(label, score > 0.5),
    "recall": lambda label, score: metrics.recall_score(label, score > 0.5),
    "average_precision": metrics.average_precision_score,
    "roc_auc": metrics.roc_auc_score,
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("digits", [2, 8])  # two digits: many ties
def test_a_metric_is_scikit_learns(metric: str, digits: int) -> None:
    random = np.random.default_rng(5)
    score = random.random(3_000).round(digits)
    label = (random.random(3_000) < score**3).astype(float)

    ours = measure(metric, score=score, decision=score > 0.5, label=label)

    assert ours.value == pytest.approx(ORACLES[metric](label, score), abs=1e-12)
    assert (ours.samples, ours.positives) == (3_000, int(label.sum()))


@pytest.mark.parametrize("metric", METRICS)
def test_the_interval_holds_the_true_value_about_99_times_in_100(metric: str) -> None:
    random = np.random.default_rng(6)
    score = random.random(400_000)
    label = (random.random(400_000) < score**3).astype(float)
    true = measure(metric, score=score, decision=score > 0.5, label=label).value

    estimates = [
        measure(metric, score=score[rows], decision=score[rows] > 0.5, label=label[rows])
        for rows in random.integers(0, 400_000, (400, 1_000))
    ]

    assert np.mean([each.low <= true <= each.high for each in estimates]) >= 0.97


@pytest.mark.parametrize("metric", METRICS)
def test_nothing_measured_is_no_value_over_the_whole_range(metric: str) -> None:
    nothing = np.zeros(0)

    ours = measure(metric, score=nothing, decision=nothing, label=nothing)

    assert np.isnan(ours.value)
    assert (ours.low, ours.high) == (0.0, 1.0)
