"""The current window of one model version: histograms that only grow, and a small sample of raw
rows.

Both are mergeable and independent of order: counts add up, and the sample is the rows with the
smallest hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from homeostat.common.schemas.models import Distribution, Reference
from homeostat.drift.columns import Array, Matrix
from homeostat.drift.detectors import Histogram
from homeostat.drift.detectors.histograms import Counts, Values, histogram

SAMPLE_ROWS = 256
SCORE = "score"


@dataclass(frozen=True)
class Column:
    """One feature of a reference, checked; ``problem`` says why it cannot be compared with."""

    name: str
    edges: Values
    histogram: Histogram
    missing: int
    problem: str | None = None

    @property
    def counts(self) -> Counts:
        return self.histogram.counts

    @property
    def samples(self) -> int:
        return self.histogram.size + self.missing

    @classmethod
    def of(cls, name: str, distribution: Distribution | None) -> Column:
        problem = _problem(distribution)
        if distribution is None or problem is not None:
            return cls(name, np.zeros(0), Histogram.of(np.zeros(1, np.int64)), 0, problem)
        edges = np.array(distribution.edges, np.float64)
        counts = np.array(distribution.counts, np.int64)
        return cls(name, edges, Histogram.of(counts), distribution.missing)


def _problem(distribution: Distribution | None) -> str | None:
    if distribution is None:
        return "the reference lacks it"
    edges = np.array(distribution.edges, np.float64)
    if len(distribution.counts) != len(edges) + 1:
        return f"the reference has {len(distribution.counts)} counts for {len(edges)} edges"
    if not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
        return "the reference's edges are not finite and ascending"
    if min(distribution.counts) < 0 or distribution.missing < 0:
        return "the reference has negative counts"
    if not sum(distribution.counts) and not distribution.missing:
        return "the reference is empty"
    return None


@dataclass(frozen=True)
class Baseline:
    """A model version's reference, ready to bin with: its features in order, then its score."""

    version: int
    columns: tuple[Column, ...]
    metrics: dict[str, float]

    @classmethod
    def of(cls, version: int, features: Sequence[str], reference: Reference) -> Baseline:
        columns = [Column.of(name, reference.features.get(name)) for name in features]
        return cls(version, (*columns, Column.of(SCORE, reference.scores)), dict(reference.metrics))

    @property
    def problems(self) -> dict[str, str]:
        return {column.name: column.problem for column in self.columns if column.problem}

    def count(self, keys: Array, vectors: Matrix, scores: Array, at: Array) -> Window:
        """The window of some rows; ``vectors`` must have this version's width."""
        matrix = np.column_stack([vectors, scores])
        counts = tuple(
            histogram(matrix[:, place], column.edges) for place, column in enumerate(self.columns)
        )
        smallest = np.argsort(keys)[:SAMPLE_ROWS]
        return Window(
            start=int(at.min()),
            end=int(at.max()),
            rows=len(keys),
            counts=counts,
            keys=keys[smallest],
            sample=matrix[smallest],
        )


@dataclass(frozen=True)
class Window:
    """``counts`` by column; what is missing is ``rows`` minus their sum. ``keys`` are those of
    ``sample``."""

    start: int  # epoch ms of its first row
    end: int
    rows: int
    counts: tuple[Counts, ...]
    keys: Array
    sample: Matrix

    def missing(self, place: int) -> int:
        return self.rows - int(self.counts[place].sum())

    def merged(self, other: Window) -> Window:
        keys = np.concatenate([self.keys, other.keys])
        smallest = np.argsort(keys)[:SAMPLE_ROWS]
        sample: np.ndarray[Any, Any] = np.concatenate([self.sample, other.sample])
        return Window(
            start=min(self.start, other.start),
            end=max(self.end, other.end),
            rows=self.rows + other.rows,
            counts=tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
            keys=keys[smallest],
            sample=sample[smallest],
        )
