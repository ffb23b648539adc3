"""Measuring models on rows that they have not seen: metrics, paired comparison, thresholds.

The comparison of two models is a paired bootstrap over blocks of time: rows of one hour share
their weather, so they are drawn together. Every resample only changes weights, so each model's
scores are sorted once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from homeostat.common.pipeline.spec import Cost, ThresholdSpec

F64 = NDArray[np.float64]
Rows = NDArray[np.intp]
Measured = Callable[[F64], float]  # weights of the rows → metric

RESAMPLES = 400
BLOCKS = 100
CONFIDENCE = 0.95  # two-sided: a challenger that is no better passes in at most 2.5 % of cases
SLICE_VALUES = 10  # a feature with more distinct values is sliced by its quartiles
SLICE_MINIMUM = 10  # of either class; smaller slices say nothing
LOWER_IS_BETTER = frozenset({"log_loss"})


def measured(metric: str, labels: F64, scores: F64) -> Measured:
    """The metric of fixed scores, as a function of the rows' weights (zero leaves a row out)."""
    if metric == "log_loss":
        losses = _log_losses(labels, scores)
        return lambda weights: float(weights @ losses / weights.sum())
    ranking = _Ranking.of(labels, scores)
    return {"average_precision": ranking.average_precision, "roc_auc": ranking.roc_auc}[metric]


def metric_value(metric: str, labels: F64, scores: F64) -> float:
    """
    >>> metric_value("roc_auc", np.array([0.0, 1.0, 1.0]), np.array([0.1, 0.2, 0.9]))
    1.0
    """
    return measured(metric, labels, scores)(np.ones(len(labels)))


def improvement(metric: str, challenger: float, champion: float) -> float:
    """How much better, relative to the champion's metric; positive is better for every metric.

    >>> improvement("log_loss", 0.4, 0.5)
    0.2
    """
    difference = challenger - champion
    if metric in LOWER_IS_BETTER:
        difference = -difference
    return round(difference / max(abs(champion), 1e-12), 12)


@dataclass(frozen=True)
class Comparison:
    """Relative improvement of challenger over champion, with the bounds of its interval."""

    estimate: float
    lower: float
    upper: float


def compare(
    metric: str,
    labels: F64,
    *,
    challenger: F64,
    champion: F64,
    seed: int,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compare two models on the same rows, which are in order of time.

    A percentile bootstrap over up to ``BLOCKS`` blocks (Efron and Tibshirani, 1993, ch. 13),
    paired: each resample weighs both models alike.
    """
    new, old = measured(metric, labels, challenger), measured(metric, labels, champion)
    ones = np.ones(len(labels))
    base = old(ones)
    estimate = improvement(metric, new(ones), base)
    blocks = min(BLOCKS, len(labels))
    block_of = np.arange(len(labels)) * blocks // len(labels)
    generator = np.random.default_rng(seed)
    differences = []
    for _ in range(resamples):
        drawn = np.bincount(generator.integers(blocks, size=blocks), minlength=blocks)
        weights = drawn[block_of].astype(np.float64)
        difference = new(weights) - old(weights)
        differences.append(-difference if metric in LOWER_IS_BETTER else difference)
    tail = (1 - CONFIDENCE) / 2
    with_both_classes = np.array(differences)[np.isfinite(differences)]
    lower, upper = np.quantile(with_both_classes, [tail, 1 - tail]) / max(abs(base), 1e-12)
    return Comparison(estimate, float(lower), float(upper))


def worst_slice(
    metric: str,
    labels: F64,
    *,
    challenger: F64,
    champion: F64,
    columns: Mapping[str, F64],
) -> tuple[str, float]:
    """The slice that the challenger improves least, and its relative improvement.

    All rows together are one of the slices; those with too few rows of either class are left out.
    """
    worst = ("all", _improvement_on(metric, labels, challenger, champion))
    for name, column in columns.items():
        for label, rows in slices(column):
            positives = int(labels[rows].sum())
            if min(positives, len(rows) - positives) < SLICE_MINIMUM:
                continue
            value = _improvement_on(metric, labels[rows], challenger[rows], champion[rows])
            if value < worst[1]:
                worst = (f"{name} {label}", value)
    return worst


def slices(column: F64) -> Iterator[tuple[str, Rows]]:
    """Disjoint groups of a feature's rows: its values if they are few, else its quartiles.

    >>> [(name, rows.tolist()) for name, rows in slices(np.array([1.0, np.nan, 0.0, 1.0]))]
    [('= 0', [2]), ('= 1', [0, 3]), ('is null', [1])]
    """
    is_null = np.isnan(column)
    present = column[~is_null]
    values = np.unique(present)
    if len(values) <= SLICE_VALUES:
        for value in values:
            yield f"= {value:g}", np.flatnonzero(column == value)
    else:
        edges = np.unique(np.quantile(present, [0.25, 0.5, 0.75]))
        bins = np.where(is_null, -1, np.searchsorted(edges, column, side="right"))
        for number in range(len(edges) + 1):
            yield f"quartile {number + 1}", np.flatnonzero(bins == number)
    if is_null.any():
        yield "is null", np.flatnonzero(is_null)


def at_threshold(labels: F64, scores: F64, threshold: float) -> dict[str, float]:
    """Precision, recall and F1 of the decisions ``score >= threshold``."""
    decided = scores >= threshold
    hits = float(labels[decided].sum())
    flagged, positives = float(decided.sum()), float(labels.sum())
    return {
        "precision": hits / flagged if flagged else 0.0,
        "recall": hits / positives if positives else 0.0,
        "f1": 2 * hits / (flagged + positives) if flagged + positives else 0.0,
    }


def choose_threshold(labels: F64, scores: F64, spec: ThresholdSpec) -> float:
    """The threshold of least cost or best F1 on these scores, which must be out of fold.

    It lies halfway between two scores, so that rounding moves no decision; above every score when
    flagging nothing is best.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hit = scores[order], labels[order]
    ends = _group_ends(ranked)
    hits = np.concatenate([[0.0], np.cumsum(hit)[ends]])
    flagged = np.concatenate([[0.0], ends + 1.0])
    positives = hits[-1]
    if spec.cost is not None:
        best = int(np.argmin(_costs(spec.cost, hits, flagged, positives)))
    else:
        best = int(np.argmax(2 * hits / np.maximum(flagged + positives, 1.0)))
    cuts = ranked[ends]
    if best == 0:
        return float((cuts[0] + 1.0) / 2) if cuts[0] < 1.0 else 1.0
    below = cuts[best] if best < len(cuts) else 0.0
    return float((cuts[best - 1] + below) / 2)


def _costs(cost: Cost, hits: F64, flagged: F64, positives: float) -> F64:
    return cost.false_positive * (flagged - hits) + cost.false_negative * (positives - hits)


def _improvement_on(metric: str, labels: F64, challenger: F64, champion: F64) -> float:
    return improvement(
        metric, metric_value(metric, labels, challenger), metric_value(metric, labels, champion)
    )


def _log_losses(labels: F64, scores: F64) -> F64:
    probability = np.clip(scores, 1e-7, 1 - 1e-7)
    losses: F64 = -np.where(labels > 0, np.log(probability), np.log1p(-probability))
    return losses


def _group_ends(ranked: F64) -> Rows:
    """The last row of each run of equal scores."""
    return np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1).astype(np.intp)


@dataclass(frozen=True)
class _Ranking:
    """Labels in descending order of score; rows of equal score stand or fall together."""

    order: Rows
    labels: F64
    ends: Rows

    @classmethod
    def of(cls, labels: F64, scores: F64) -> _Ranking:
        order = np.argsort(-scores, kind="stable")
        return cls(order, labels[order], _group_ends(scores[order]))

    def average_precision(self, weights: F64) -> float:
        hits, flagged = self._counts(weights)
        if hits[-1] == 0:
            return float("nan")
        precision = hits / np.maximum(flagged, 1e-12)
        return float(np.diff(hits, prepend=0.0) @ precision / hits[-1])

    def roc_auc(self, weights: F64) -> float:
        hits, flagged = self._counts(weights)
        misses = flagged - hits
        area = hits[-1] * misses[-1]
        if area == 0:
            return float("nan")
        middle = hits - np.diff(hits, prepend=0.0) / 2
        return float(np.diff(misses, prepend=0.0) @ middle / area)

    def _counts(self, weights: F64) -> tuple[F64, F64]:
        ranked = weights[self.order]
        return np.cumsum(ranked * self.labels)[self.ends], np.cumsum(ranked)[self.ends]
