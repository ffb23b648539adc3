"""The search: history length, class weight and tree parameters, on time-ordered folds.

Each fold trains on the past and validates on what came next; newer folds weigh more and go first,
so that a poor trial is pruned on what matters most. The first trials are sound defaults, one for
each history length, and a cautious variant: a budget of seconds still ends with a good model. The
seconds are the processor's: on a busy machine a search lasts longer, it does not find less. Only
training rows are ever thinned or weighted; validation rows stay as they came.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
import optuna
import xgboost as xgb
from numpy.typing import NDArray

from homeostat.common.pipeline import Pipeline
from homeostat.common.pipeline.spec import TrainingSpec
from homeostat.trainer import booster
from homeostat.trainer.dataset import Examples, Refused
from homeostat.trainer.evaluation import LOWER_IS_BETTER, choose_threshold, metric_value
from homeostat.trainer.messages import Configuration, Tuned

logger = logging.getLogger(__name__)

F64 = NDArray[np.float64]

MAX_ROUNDS = 400
PATIENCE_ROUNDS = 30
CUTS = ((0.55, 0.70, 0.85, 1.0), (0.6, 1.0))  # shares of the rows; the second for scarce positives
FOLD_POSITIVES = 5
CELLS_PER_SECOND = (
    40_000  # of training data per fold and second of budget: ten full trials and more
)
DEFAULTS: dict[str, float] = {
    "eta": 0.1,
    "max_depth": 6,
    "min_child_weight": 5.0,
    "subsample": 0.9,
    "colsample_bytree": 0.8,
    "reg_lambda": 1.0,
    "gamma": 0.01,
}
CAUTIOUS = DEFAULTS | {"eta": 0.07, "max_depth": 4, "min_child_weight": 10.0, "reg_lambda": 5.0}
XGBOOST_METRICS = {"average_precision": "aucpr", "roc_auc": "auc", "log_loss": "logloss"}


@dataclass(frozen=True)
class _Fold:
    weight: float
    train: dict[int | None, Examples]  # by history
    validation: Examples


@dataclass
class _Trial:
    score: float
    searched: dict[str, float]
    history: int | None
    rounds: int
    labels: F64
    scores: F64


@dataclass(frozen=True)
class Stopwatch:
    """Processor seconds of a search, of which every thread gives its share."""

    deadline: float

    @classmethod
    def of(cls, seconds: float, *, threads: int) -> Stopwatch:
        return cls(time.process_time() + seconds * threads)

    @property
    def is_over(self) -> bool:
        return time.process_time() > self.deadline


@dataclass
class _Search:
    folds: Sequence[_Fold]
    pipeline: Pipeline
    threads: int
    watch: Stopwatch
    best: _Trial | None = None
    completed: int = 0
    cut_short: bool = False
    _matrices: dict[tuple[int, int | None], tuple[xgb.DMatrix, xgb.DMatrix]] = field(
        default_factory=dict
    )

    @property
    def metric(self) -> str:
        return self.pipeline.model.metric

    @property
    def sign(self) -> float:
        return -1.0 if self.metric in LOWER_IS_BETTER else 1.0

    def objective(self, trial: optuna.Trial) -> float:
        training = self.pipeline.training
        searched, history = _suggest(trial, training)
        total = weights = 0.0
        rounds, labels, scores = [], [], []
        for number, fold in enumerate(self.folds):
            examples = fold.train[history]
            if min(examples.positives, len(examples) - examples.positives) < FOLD_POSITIVES:
                raise optuna.TrialPruned
            predicted, best_round = self._fit(number, history, _weighted(searched, examples))
            value = self.sign * metric_value(self.metric, fold.validation.labels, predicted)
            total, weights = total + fold.weight * value, weights + fold.weight
            rounds.append(best_round)
            labels.append(fold.validation.labels)
            scores.append(predicted)
            trial.report(total / weights, number)
            if self.best is not None and number + 1 < len(self.folds) and trial.should_prune():
                raise optuna.TrialPruned
        score = total / weights
        self.completed += 1
        if self.best is None or score > self.best.score:
            mean_rounds = max(1, round(float(np.mean(rounds))))
            self.best = _Trial(
                score,
                searched,
                history,
                mean_rounds,
                np.concatenate(labels),
                np.concatenate(scores),
            )
        return score

    def stop_when_due(self, study: optuna.Study, _trial: object) -> None:
        if self.watch.is_over:
            study.stop()

    def _fit(self, number: int, history: int | None, searched: dict[str, float]) -> tuple[F64, int]:
        train, validation = self._data(number, history)
        settings = booster.parameters(
            searched, seed=self.pipeline.training.seed, threads=self.threads
        )
        settings["eval_metric"] = XGBOOST_METRICS[self.metric]
        clock = _Deadline(self.watch)
        stopping = xgb.callback.EarlyStopping(
            rounds=PATIENCE_ROUNDS, metric_name=settings["eval_metric"], data_name="validation"
        )
        model = xgb.train(
            settings,
            train,
            num_boost_round=MAX_ROUNDS,
            evals=[(validation, "validation")],
            callbacks=[stopping, clock],
            verbose_eval=False,
        )
        if clock.has_struck:
            self.cut_short = True
            if (
                self.best is not None
            ):  # an unfinished trial is no candidate, unless it is the only one
                raise optuna.TrialPruned
        best_round = int(model.best_iteration) + 1
        predicted = model.inplace_predict(
            self.folds[number].validation.values,
            iteration_range=(0, best_round),
            validate_features=False,
        )
        return np.asarray(predicted, np.float64), best_round

    def _data(self, number: int, history: int | None) -> tuple[xgb.DMatrix, xgb.DMatrix]:
        """The binned matrices of a fold, made once for all trials."""
        key = (number, history)
        if key not in self._matrices:
            fold = self.folds[number]
            train = booster.matrix(fold.train[history], threads=self.threads)
            validation = xgb.QuantileDMatrix(
                fold.validation.values,
                fold.validation.labels,
                feature_names=list(fold.validation.features),
                ref=train,
                max_bin=booster.MAX_BIN,
                nthread=self.threads,
            )
            self._matrices[key] = (train, validation)
        return self._matrices[key]


def tune(examples: Examples, pipeline: Pipeline, *, threads: int) -> Tuned:
    """Search within the pipeline's budget of trials and seconds.

    Raises:
        Refused: no fold has enough rows of both classes to validate on.
    """
    training = pipeline.training
    search = _Search(
        _folds(examples, training),
        pipeline,
        threads,
        Stopwatch.of(training.budget.seconds, threads=threads),
    )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=training.seed, multivariate=True)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    for history in _histories(training):
        study.enqueue_trial({**DEFAULTS, **_choices(history, training)})
    study.enqueue_trial({**CAUTIOUS, **_choices(_histories(training)[0], training)})
    study.optimize(
        search.objective,
        n_trials=training.budget.trials,
        callbacks=[search.stop_when_due],
        gc_after_trial=False,
    )
    if search.best is None:
        raise Refused("no history length leaves enough rows of both classes in every fold")
    best = search.best
    threshold = choose_threshold(best.labels, best.scores, pipeline.model.threshold)
    chosen = examples.take(within(examples.times, best.history))
    return Tuned(
        Configuration(best.history, _weighted(best.searched, chosen), best.rounds, threshold),
        search.sign * best.score,
        trials=len(study.trials),
        is_complete=not search.cut_short and len(study.trials) >= training.budget.trials,
    )


def within(times: NDArray[np.int64], history: int | None) -> NDArray[np.bool_]:
    """Which rows lie in the last ``history`` ms of these."""
    if history is None or len(times) == 0:
        return np.ones(len(times), np.bool_)
    recent: NDArray[np.bool_] = times > times[-1] - history
    return recent


def _suggest(trial: optuna.Trial, training: TrainingSpec) -> tuple[dict[str, float], int | None]:
    searched = {
        "eta": trial.suggest_float("eta", 0.03, 0.3, log=True),
        "max_depth": trial.suggest_int("max_depth", 3, 8),
        "min_child_weight": trial.suggest_float("min_child_weight", 1.0, 50.0, log=True),
        "subsample": trial.suggest_float("subsample", 0.6, 1.0),
        "colsample_bytree": trial.suggest_float("colsample_bytree", 0.5, 1.0),
        "reg_lambda": trial.suggest_float("reg_lambda", 0.1, 30.0, log=True),
        "gamma": trial.suggest_float("gamma", 0.001, 5.0, log=True),
    }
    if training.rebalance == "auto":
        searched["rebalance"] = trial.suggest_categorical("rebalance", [0.0, 0.5, 1.0])
    histories = _histories(training)
    index = trial.suggest_categorical("history", list(range(len(histories))))
    return searched, histories[index]


def _choices(history: int | None, training: TrainingSpec) -> dict[str, float]:
    choices: dict[str, float] = {"history": _histories(training).index(history)}
    if training.rebalance == "auto":
        choices["rebalance"] = 0.0
    return choices


def _weighted(searched: dict[str, float], examples: Examples) -> dict[str, float]:
    """The share of the imbalance that is made good, as the weight of a positive row."""
    parameters = dict(searched)
    share = parameters.pop("rebalance", 0.0)
    if share:
        odds = (len(examples) - examples.positives) / max(1, examples.positives)
        parameters["scale_pos_weight"] = max(1.0, odds**share)
    return parameters


def _histories(training: TrainingSpec) -> list[int | None]:
    """The lengths to choose from, the longest first."""
    lengths = {
        None if length is None else length // timedelta(milliseconds=1)
        for length in training.history
    }
    return sorted(lengths, key=lambda length: (length is not None, -(length or 0)))


def _folds(examples: Examples, training: TrainingSpec) -> list[_Fold]:
    """Newest first. The search trains on at most as many rows as its seconds allow."""
    limit = max(20_000, CELLS_PER_SECOND * training.budget.seconds // len(examples.features))
    for cuts in CUTS:
        folds = list(_cut(examples, cuts, training, limit))
        if folds:
            return folds
    raise Refused("too few rows of the rarer class to validate on", fix="wait for more labels")


def _cut(
    examples: Examples, cuts: Sequence[float], training: TrainingSpec, limit: int
) -> Iterator[_Fold]:
    bounds = [round(share * len(examples)) for share in cuts]
    for number in reversed(range(len(bounds) - 1)):
        start, end = bounds[number], bounds[number + 1]
        past, validation = examples.take(slice(0, start)), examples.take(slice(start, end))
        if min(map(_rarer, (past, validation))) < FOLD_POSITIVES:
            continue
        train = {
            history: _thin(past.take(within(past.times, history)), limit, training.seed)
            for history in _histories(training)
        }
        yield _Fold(float(number + 1), train, validation)


def _thin(examples: Examples, limit: int, seed: int) -> Examples:
    """A seeded sample of rows, in order; never of what a model is validated on."""
    if len(examples) <= limit:
        return examples
    generator = np.random.default_rng(seed)
    rows = np.sort(generator.choice(len(examples), limit, replace=False))
    return examples.take(rows.astype(np.intp))


def _rarer(examples: Examples) -> int:
    return min(examples.positives, len(examples) - examples.positives)


class _Deadline(xgb.callback.TrainingCallback):
    """Ends a fit when the budget's seconds are over."""

    def __init__(self, watch: Stopwatch) -> None:
        super().__init__()
        self._watch = watch
        self.has_struck = False

    def after_iteration(self, model: xgb.Booster, epoch: int, evals_log: object) -> bool:  # noqa: ARG002 - XGBoost's
        self.has_struck = self._watch.is_over
        return self.has_struck
