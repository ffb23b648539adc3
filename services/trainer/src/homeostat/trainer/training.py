"""One run, from rows to a judged challenger: tune, judge on unseen rows, refit with them.

Everything in here is a function of its arguments (and of the seconds that the search may take), so
the service's child process and a backtest run the same code.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from homeostat.common.pipeline import Pipeline
from homeostat.common.policy import Measure
from homeostat.common.schemas.models import ModelVersion, Reference, VersionState
from homeostat.trainer import booster, dataset, evaluation, governance, reference
from homeostat.trainer.booster import Model
from homeostat.trainer.dataset import Examples, Refused
from homeostat.trainer.messages import Candidate, Configuration, Judged, Tuned
from homeostat.trainer.tuning import tune, within

F64 = NDArray[np.float64]

LATENCY_CALLS = 300
HISTORY_ROWS = 50_000
MIN_SLICE_POSITIVES = 10


@dataclass(frozen=True)
class Champion:
    """The version that serves now, and its file."""

    version: ModelVersion
    content: bytes


@dataclass(frozen=True)
class Split:
    """``past`` is for training, ``newest`` for judging: neither model has seen it."""

    past: Examples
    newest: Examples


def split(examples: Examples, *, holdout: float, seen_until: int | None) -> Split:
    """Set the newest rows aside, and no row that the champion was trained on.

    Of the rows that the champion has not seen, the older half at least is for training: a
    challenger that has seen nothing newer than the champion cannot be better.

    Raises:
        Refused: too few of them, or too little left to train on.
    """
    start = len(examples) - max(1, round(holdout * len(examples)))
    if seen_until is not None:
        unseen = int(np.searchsorted(examples.times, seen_until, side="right"))
        start = max(start, unseen + (len(examples) - unseen) // 2)
    parts = Split(examples.take(slice(0, start)), examples.take(slice(start, None)))
    if _rarer(parts.newest) < MIN_SLICE_POSITIVES:
        raise Refused(
            f"the {len(parts.newest)} newest mature rows that no model has seen have "
            f"{_rarer(parts.newest)} of the rarer class, {MIN_SLICE_POSITIVES} are needed to judge",
            fix="wait for more labels",
        )
    if _rarer(parts.past) < MIN_SLICE_POSITIVES:
        raise Refused(
            "before the newest slice there are too few rows of the rarer class to train on"
        )
    return parts


def train(
    examples: Examples,
    pipeline: Pipeline,
    *,
    champion: Champion | None,
    threads: int,
    tuned: Tuned | None = None,
    on_tuned: Callable[[Tuned], None] = lambda _tuned: None,
) -> tuple[Judged, bytes | None]:
    """The judgement, and the file of the challenger if it passed. ``tuned`` skips the search.

    Raises:
        Refused: the rows cannot make or judge a model.
    """
    dataset.check(examples, pipeline.training)
    waiver = _waiver(champion, examples)
    incumbent = champion if waiver is None else None
    parts = split(
        examples,
        holdout=pipeline.training.holdout,
        seen_until=incumbent.version.reference.matured_at if incumbent else None,
    )
    if tuned is None:
        tuned = tune(parts.past, pipeline, threads=threads)
        on_tuned(tuned)
    winner = tuned.configuration
    content = _fit(parts.past, pipeline, winner, threads)
    model = Model(content, threads=threads)
    scores = model.score(parts.newest.values)
    figures, details = _measure(model, scores, parts, examples, pipeline, incumbent, threads)
    verdict = governance.decide(pipeline.policy, figures, waiver=waiver)
    judged = Judged(
        verdict,
        {measure.value: None if value != value else value for measure, value in figures.items()},
        details,
    )
    if verdict.state is VersionState.REFUSED:
        return judged, None
    final = _fit(examples, pipeline, winner, threads)
    candidate = _candidate(examples, parts, scores, winner, Model(final, threads=threads))
    evidence = _evidence(examples, parts, tuned, judged_sha256=model.sha256, pipeline=pipeline)
    candidate = msgspec.structs.replace(candidate, training=evidence | details)
    return msgspec.structs.replace(judged, candidate=candidate), final


def _waiver(champion: Champion | None, examples: Examples) -> str | None:
    if champion is None:
        return "there is no champion"
    if champion.version.definition_hash != examples.definition_hash:
        return f"version {champion.version.version} reads other feature definitions"
    return None


def _fit(examples: Examples, pipeline: Pipeline, winner: Configuration, threads: int) -> bytes:
    settings = booster.parameters(winner.searched, seed=pipeline.training.seed, threads=threads)
    recent = examples.take(within(examples.times, winner.history))
    return booster.fit(recent, settings, rounds=winner.rounds)


def _measure(
    model: Model,
    scores: F64,
    parts: Split,
    examples: Examples,
    pipeline: Pipeline,
    champion: Champion | None,
    threads: int,
) -> tuple[dict[Measure, float], dict[str, str]]:
    newest, metric = parts.newest, pipeline.model.metric
    feature, share = dataset.missing_share(examples)
    figures: dict[Measure, float] = {
        Measure.METRIC: evaluation.metric_value(metric, newest.labels, scores),
        Measure.EVALUATION_ROWS: len(newest),
        Measure.EVALUATION_POSITIVES: newest.positives,
        Measure.LATENCY_P99_SECONDS: _latency(model, newest.values),
        Measure.SIZE_BYTES: model.size_bytes,
        Measure.MISSING_SHARE: share,
    }
    details = {"missing_most": feature}
    if champion is None:
        return figures, details
    old = Model(champion.content, threads=threads)
    old_scores = old.score(newest.values)
    if np.array_equal(scores, old_scores):
        raise Refused("the challenger scores every row exactly as the champion does")
    comparison = evaluation.compare(
        metric,
        newest.labels,
        challenger=scores,
        champion=old_scores,
        seed=pipeline.training.seed,
    )
    columns = {
        name: newest.values[:, newest.features.index(name)] for name in pipeline.policy.slices
    }
    worst, worst_improvement = evaluation.worst_slice(
        metric, newest.labels, challenger=scores, champion=old_scores, columns=columns
    )
    figures |= {
        Measure.IMPROVEMENT: comparison.estimate,
        Measure.IMPROVEMENT_LOWER: comparison.lower,
        Measure.HISTORY_IMPROVEMENT: _on_history(metric, parts.past, model, old),
        Measure.WORST_SLICE_IMPROVEMENT: worst_improvement,
    }
    details |= {
        "champion": str(champion.version.version),
        "champion_metric": f"{evaluation.metric_value(metric, newest.labels, old_scores):.6g}",
        "improvement_upper": f"{comparison.upper:.6g}",
        "worst_slice": worst,
    }
    return figures, details


def _on_history(metric: str, past: Examples, challenger: Model, champion: Model) -> float:
    """Relative improvement on an even sample of the older rows.

    Both have seen some of them: the figure tells a collapse, not a small difference.
    """
    rows = np.unique(np.linspace(0, len(past) - 1, HISTORY_ROWS).astype(np.intp))
    older = past.take(rows)
    new, old = (
        evaluation.metric_value(metric, older.labels, model.score(older.values))
        for model in (challenger, champion)
    )
    return evaluation.improvement(metric, new, old)


def _latency(model: Model, values: F64) -> float:
    """The 99th percentile of scoring one row, in processor seconds: neighbours do not count."""
    seconds = []
    for call in range(LATENCY_CALLS):
        row = values[call % len(values)][None, :]
        started = time.process_time()
        model.score(row)
        seconds.append(time.process_time() - started)
    return float(np.quantile(seconds, 0.99))


def _candidate(
    examples: Examples, parts: Split, scores: F64, winner: Configuration, final: Model
) -> Candidate:
    newest = parts.newest
    trained = examples.take(within(examples.times, winner.history))
    metrics = {
        metric: evaluation.metric_value(metric, newest.labels, scores)
        for metric in ("average_precision", "roc_auc", "log_loss")
    }
    return Candidate(
        sha256=final.sha256,
        size_bytes=final.size_bytes,
        features=examples.features,
        definition_hash=examples.definition_hash,
        threshold=winner.threshold,
        golden=reference.golden(final, newest.values),
        reference=Reference(
            features={
                name: reference.distribution(trained.values[:, index])
                for index, name in enumerate(examples.features)
            },
            # Of unseen rows: a model is surer of those that it was trained on.
            scores=reference.distribution(scores),
            positive_share=float(trained.labels.mean()),
            metrics=metrics | evaluation.at_threshold(newest.labels, scores, winner.threshold),
            matured_at=int(newest.times[-1]),
        ),
        training={},
    )


def _evidence(
    examples: Examples, parts: Split, tuned: Tuned, *, judged_sha256: str, pipeline: Pipeline
) -> dict[str, str]:
    winner = tuned.configuration
    history = "all" if winner.history is None else f"{winner.history} ms"
    return {
        "dataset": examples.digest,
        "rows": str(len(examples)),
        "positives": str(examples.positives),
        "rows_dropped": str(examples.dropped),
        "evaluation_rows": str(len(parts.newest)),
        "evaluation_from": str(int(parts.newest.times[0])),
        "judged_sha256": judged_sha256,
        "history": history,
        "rounds": str(winner.rounds),
        "parameters": msgspec.json.encode(_floats(winner.searched), order="sorted").decode(),
        "validation_score": f"{tuned.score:.6g}",
        "trials": str(tuned.trials),
        "search": "complete" if tuned.is_complete else "ended by its seconds",
        "seed": str(pipeline.training.seed),
        "xgboost": xgb.__version__,
    }


def _floats(searched: dict[str, float]) -> dict[str, float]:
    """As they come back from storage, so that a resumed run records the same."""
    return {name: float(value) for name, value in searched.items()}


def _rarer(examples: Examples) -> int:
    return min(examples.positives, len(examples) - examples.positives)
