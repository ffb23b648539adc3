"""What goes out with a model for those who watch and load it: histograms and golden vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from homeostat.common.schemas.models import Distribution, Golden
from homeostat.trainer.booster import Model

F64 = NDArray[np.float64]

MAX_BINS = 40
GOLDEN_ROWS = 24
GOLDEN_NULL_COLUMNS = 8


def distribution(values: F64) -> Distribution:
    """A histogram of at most ``MAX_BINS`` bins, with about as many rows in each.

    Few distinct values get a bin each, so that a new value between two of them is told apart from
    neither; the bin before the first edge is then empty.

    >>> distribution(np.array([0.0, 1.0, 1.0, np.nan]))
    Distribution(edges=(0.0, 1.0), counts=(0, 1, 2), missing=1)
    """
    present = values[~np.isnan(values)]
    if len(present) == 0:
        return Distribution((), (0,), len(values))
    edges = np.unique(present)
    if len(edges) >= MAX_BINS:
        inner = np.linspace(0, 1, MAX_BINS + 1)[1:-1]
        edges = np.unique(np.quantile(present, inner, method="inverted_cdf"))
    counts = np.bincount(np.searchsorted(edges, present, side="right"), minlength=len(edges) + 1)
    return Distribution(tuple(edges.tolist()), tuple(counts.tolist()), len(values) - len(present))


def golden(model: Model, values: F64) -> Golden:
    """Vectors over the whole range of scores, some with nulls, one all null; and their scores."""
    order = np.argsort(model.score(values), kind="stable")
    spread = order[np.unique(np.linspace(0, len(order) - 1, GOLDEN_ROWS).astype(np.intp))]
    rows = [values[row].copy() for row in spread]
    for column in range(min(GOLDEN_NULL_COLUMNS, values.shape[1])):
        row = values[spread[column % len(spread)]].copy()
        row[column] = np.nan
        rows.append(row)
    rows.append(np.full(values.shape[1], np.nan))
    # As they travel: 64-bit numbers in JSON; the scorer sees exactly these again.
    vectors = np.array(rows)
    return Golden(
        vectors=tuple(
            tuple(None if np.isnan(value) else float(value) for value in row) for row in vectors
        ),
        scores=tuple(model.score(vectors).tolist()),
    )
