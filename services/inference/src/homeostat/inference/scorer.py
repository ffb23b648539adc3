"""Models behind one protocol: a matrix of feature values in, a column of probabilities out.

XGBoost itself accepts swapped columns, infinities and foreign names in silence, so everything
that decides whether a score means anything is checked here, before and after its call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import xgboost as xgb

from homeostat.common.errors import HomeostatError, InvalidInput
from homeostat.common.schemas.models import Golden, ModelVersion

F64 = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]

FLOAT32_MAX = float(
    np.finfo(np.float32).max
)  # beyond it XGBoost's own type turns a value into infinity


class ModelRefused(InvalidInput):
    """The file parses, but is not the model that was announced."""

    code = "MODEL_REFUSED"


class ScoringFailed(HomeostatError):
    """The model gave no usable answer to a valid row; another version may."""

    code = "SCORING_FAILED"


class Scorer(Protocol):
    """``score(values[n, f])`` gives ``n`` probabilities; NaN in ``values`` stands for null."""

    def score(self, values: F64) -> F64: ...


class XgboostScorer:
    """XGBoost's own prediction on one thread: batches come from concurrency, not from cores."""

    def __init__(self, content: bytes, features: Sequence[str]) -> None:
        """Parse a model in XGBoost's JSON format, whose columns must be ``features`` in this order.

        Raises:
            ModelRefused: another format, other columns, or not a binary classifier.
        """
        # UBJSON also opens with a brace, and a damaged file of it ends the process.
        if content[:2] != b'{"':
            raise ModelRefused("the file is not an XGBoost model in JSON format")
        booster = xgb.Booster()
        try:
            booster.load_model(bytearray(content))
            names = booster.feature_names
            count = booster.num_features()
        except (xgb.core.XGBoostError, ValueError) as error:
            raise ModelRefused(f"XGBoost cannot read the file: {_first_line(error)}") from error
        if count != len(features) or names != list(features):
            raise ModelRefused(
                f"the file's columns are {names or f'{count} without names'}, announced are "
                f"{list(features)}",
                fix="train with feature_names in the order that is announced",
            )
        booster.set_param({"nthread": 1})
        self._booster = booster

    def score(self, values: F64) -> F64:
        try:
            scores = self._booster.inplace_predict(values, validate_features=False)
        except (xgb.core.XGBoostError, ValueError) as error:
            raise ScoringFailed(f"the model failed: {_first_line(error)}") from error
        if scores.shape != (len(values),):
            raise ScoringFailed(f"the model gave shape {scores.shape} for {len(values)} rows")
        return np.asarray(scores, np.float64)


def load(version: ModelVersion, content: bytes) -> Scorer:
    """The scorer of an announced version, seen to reproduce its golden scores.

    Raises:
        ModelRefused: the file does not do what was announced.
    """
    if version.artifact.format != "xgboost-json":
        raise ModelRefused(
            f"the format {version.artifact.format!r} is not served", fix="announce xgboost-json"
        )
    scorer = XgboostScorer(content, version.features)
    check_golden(scorer, version.golden, width=len(version.features))
    return scorer


def check_golden(scorer: Scorer, golden: Golden, *, width: int) -> None:
    """Score the golden vectors and compare.

    Raises:
        ModelRefused: there are none, or a score differs by more than the tolerance.
    """
    if not golden.vectors or len(golden.vectors) != len(golden.scores):
        raise ModelRefused("the version is announced without golden vectors and their scores")
    if any(len(vector) != width for vector in golden.vectors):
        raise ModelRefused(f"a golden vector does not have {width} values")
    values = np.array(
        [[np.nan if value is None else value for value in row] for row in golden.vectors],
        np.float64,
    )
    scores = scorer.score(values)
    difference = np.abs(scores - np.array(golden.scores))
    if not np.all(difference <= golden.tolerance):  # NaN fails too
        worst = int(np.argmax(np.nan_to_num(difference, nan=np.inf)))
        raise ModelRefused(
            f"golden vector {worst} scores {scores[worst]:.7g}, the trainer saw "
            f"{golden.scores[worst]:.7g}"
        )


def unusable(values: F64) -> Flags:
    """Rows that no model may see: an infinity, or a number that becomes one in single precision."""
    flags: Flags = np.any(np.abs(values) > FLOAT32_MAX, axis=1)
    return flags


def is_probability(scores: F64) -> Flags:
    """
    >>> is_probability(np.array([0.5, np.nan, 1.5])).tolist()
    [True, False, False]
    """
    flags: Flags = (scores >= 0.0) & (scores <= 1.0)
    return flags


def _first_line(error: Exception) -> str:
    """XGBoost's messages carry a C++ stack trace."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
