"""XGBoost behind four functions: parameters, fit, bytes, scores. One thread gives one digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from homeostat.trainer.dataset import Examples

F64 = NDArray[np.float64]
MAX_BIN = 256
WHOLE = frozenset({"max_depth"})


def parameters(searched: Mapping[str, float], *, seed: int, threads: int) -> dict[str, Any]:
    """All of XGBoost's parameters: what was searched, and what is fixed."""
    return {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "max_bin": MAX_BIN,
        "seed": seed,
        "nthread": threads,
        # Whole numbers come back from storage as floats, which XGBoost refuses.
        **{name: int(value) if name in WHOLE else value for name, value in searched.items()},
    }


def matrix(examples: Examples, *, threads: int) -> xgb.QuantileDMatrix:
    return xgb.QuantileDMatrix(
        examples.values,
        examples.labels,
        feature_names=list(examples.features),
        max_bin=MAX_BIN,
        nthread=threads,
    )


def fit(examples: Examples, settings: Mapping[str, Any], *, rounds: int) -> bytes:
    """Train a fixed number of rounds; the model in XGBoost's JSON format."""
    data = matrix(examples, threads=int(settings["nthread"]))
    booster = xgb.train(dict(settings), data, num_boost_round=rounds)
    # The number of threads is the machine's business, and is no part of the model.
    booster.set_param({"nthread": 1})
    return bytes(booster.save_raw("json"))


class Model:
    """A model file, loaded as inference loads it."""

    def __init__(self, content: bytes, *, threads: int = 1) -> None:
        self._booster = xgb.Booster()
        self._booster.load_model(bytearray(content))
        self._booster.set_param({"nthread": threads})
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.size_bytes = len(content)

    def score(self, values: F64) -> F64:
        return np.asarray(
            self._booster.inplace_predict(values, validate_features=False), np.float64
        )
