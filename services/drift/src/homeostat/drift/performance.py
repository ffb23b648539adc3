"""Performance from delayed labels: point estimate and interval of a metric over mature outcomes.

Each interval is two-sided at 99 % and assumes independent outcomes; labels that come in clusters
(one compromised terminal, many frauds) make the truth wider, which is why an alarm also needs
several windows in a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats

from homeostat.drift.intervals import Z99, wilson

Array = np.ndarray[tuple[int], np.dtype[Any]]


@dataclass(frozen=True)
class Estimate:
    """A metric with its interval. ``samples`` are outcomes, ``positives`` those among them
    labelled 1."""

    metric: str
    value: float
    low: float
    high: float
    samples: int
    positives: int


@dataclass(frozen=True)
class Confusion:
    tp: int
    fp: int
    fn: int
    tn: int

    @classmethod
    def of(cls, decision: Array, label: Array) -> Confusion:
        said, true = decision.astype(bool), label > 0.5
        return cls(
            tp=int((said & true).sum()),
            fp=int((said & ~true).sum()),
            fn=int((~said & true).sum()),
            tn=int((~said & ~true).sum()),
        )


def f1(counts: Confusion) -> tuple[float, float, float]:
    """F1 and its interval, through ``J = tp / (tp + fp + fn)``, a share whose odds F1 doubles.

    Source: Lam, Confidence Intervals for the F1 Score, arXiv 2309.14621 (the Wilson indirect
    method).

    >>> [round(figure, 3) for figure in f1(Confusion(tp=60, fp=20, fn=20, tn=900))]
    [0.75, 0.641, 0.835]
    """
    touched = counts.tp + counts.fp + counts.fn
    low, high = wilson(counts.tp, touched)
    share = counts.tp / touched if touched else math.nan
    return tuple(2 * j / (1 + j) for j in (share, low, high))  # type: ignore[return-value]  # 3 in, 3 out


def precision(counts: Confusion) -> tuple[float, float, float]:
    said = counts.tp + counts.fp
    return (counts.tp / said if said else math.nan), *wilson(counts.tp, said)


def recall(counts: Confusion) -> tuple[float, float, float]:
    true = counts.tp + counts.fn
    return (counts.tp / true if true else math.nan), *wilson(counts.tp, true)


def average_precision(score: Array, label: Array) -> tuple[float, float, float]:
    """The step-wise area under precision-recall (scikit-learn's), with the logit interval.

    Source: Boyd, Eng & Page, Area under the Precision-Recall Curve, ECML PKDD 2013.

    >>> score, label = np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])
    >>> [round(figure, 3) for figure in average_precision(score, label)]
    [0.833, 0.043, 0.995]
    """
    order = np.argsort(-score, kind="stable")
    ranked, true = score[order], label[order] > 0.5
    positives = int(true.sum())
    if positives == 0:
        return math.nan, 0.0, 1.0
    last_of_tie = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    found = np.cumsum(true)[last_of_tie]
    value = float((np.diff(found, prepend=0) * found / (last_of_tie + 1)).sum() / positives)
    return value, *_logit_interval(value, positives)


def _logit_interval(value: float, positives: int) -> tuple[float, float]:
    clipped = min(max(value, 0.5 / positives), 1 - 0.5 / positives)
    spread = Z99 / math.sqrt(positives * clipped * (1 - clipped))
    centre = special.logit(clipped)
    return float(special.expit(centre - spread)), float(special.expit(centre + spread))


def roc_auc(score: Array, label: Array) -> tuple[float, float, float]:
    """The share of (positive, negative) pairs in the right order, with DeLong's interval.

    Source: DeLong, DeLong & Clarke-Pearson, Biometrics 44, 1988.

    >>> roc_auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))[0]
    0.75
    """
    true = label > 0.5
    m, n = int(true.sum()), int((~true).sum())
    if m == 0 or n == 0:
        return math.nan, 0.0, 1.0
    ranks = stats.rankdata(score)
    below_positive = (ranks[true] - stats.rankdata(score[true])) / n
    above_negative = 1 - (ranks[~true] - stats.rankdata(score[~true])) / m
    value = float(below_positive.mean())
    if m < 2 or n < 2:
        return value, 0.0, 1.0
    spread = Z99 * math.sqrt(below_positive.var(ddof=1) / m + above_negative.var(ddof=1) / n)
    return value, max(0.0, value - spread), min(1.0, value + spread)


_BY_DECISION: dict[str, Callable[[Confusion], tuple[float, float, float]]] = {
    "f1": f1,
    "precision": precision,
    "recall": recall,
}
_BY_SCORE: dict[str, Callable[[Array, Array], tuple[float, float, float]]] = {
    "average_precision": average_precision,
    "roc_auc": roc_auc,
}
METRICS = (*_BY_DECISION, *_BY_SCORE)


def measure(metric: str, *, score: Array, decision: Array, label: Array) -> Estimate:
    """One metric of outcomes whose label is known. A value that does not exist is NaN over ``(0,
    1)``."""
    if metric in _BY_DECISION:
        figures = _BY_DECISION[metric](Confusion.of(decision, label))
    else:
        figures = _BY_SCORE[metric](score, label)
    return Estimate(metric, *figures, samples=len(label), positives=int((label > 0.5).sum()))
