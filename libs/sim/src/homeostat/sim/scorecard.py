"""How good the live predictions were, beside what the first champion would have said alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from homeostat.common import topics
from homeostat.common.schemas.ledger import LedgerBatch
from homeostat.sim.log import Record
from homeostat.sim.process import Process, World
from homeostat.sim.registry import Registry
from homeostat.trainer.evaluation import metric_value

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Flags = NDArray[np.bool_]
FIRST_VERSION = 1


@dataclass(frozen=True)
class Quality:
    """F1 of the decisions and average precision of the scores; ``None`` without a positive."""

    f1: float | None
    average_precision: float | None

    @classmethod
    def of(cls, labels: F64, scores: F64, decisions: Flags) -> Quality:
        positives = int(labels.sum())
        if not positives:
            return cls(None, None)
        hits = int(labels[decisions].sum())
        precision = metric_value("average_precision", labels, scores)
        return cls(round(2 * hits / (int(decisions.sum()) + positives), 6), round(precision, 6))


@dataclass(frozen=True)
class Stretch:
    """What happened in ``[start, end)`` (event time, epoch ms), as far as its truth is known."""

    start: int
    end: int
    rows: int
    positives: int
    live: Quality
    static: Quality


@dataclass(frozen=True)
class Scores:
    """Judged rows, in order of event time."""

    times: I64
    labels: F64
    live: F64
    live_decisions: Flags
    static: F64
    static_decisions: Flags

    def whole(self) -> Stretch | None:
        if not len(self.times):
            return None
        return self._stretch(slice(None), int(self.times[0]), int(self.times[-1]) + 1)

    def stretches(self, width: int) -> Iterator[Stretch]:
        """Consecutive stretches of ``width`` ms that have rows."""
        numbers, firsts = np.unique(self.times // width, return_index=True)
        ends = [*firsts[1:].tolist(), len(self.times)]
        for number, first, end in zip(numbers.tolist(), firsts.tolist(), ends, strict=True):
            yield self._stretch(slice(first, end), number * width, (number + 1) * width)

    def _stretch(self, rows: slice, start: int, end: int) -> Stretch:
        labels = self.labels[rows]
        return Stretch(
            start,
            end,
            len(labels),
            int(labels.sum()),
            live=Quality.of(labels, self.live[rows], self.live_decisions[rows]),
            static=Quality.of(labels, self.static[rows], self.static_decisions[rows]),
        )


@dataclass(eq=False)
class _Columns:
    ids: list[str] = field(default_factory=list)
    times: list[I64] = field(default_factory=list)
    live: list[F64] = field(default_factory=list)
    live_decisions: list[Flags] = field(default_factory=list)
    vectors: list[NDArray[np.float64]] = field(default_factory=list)


class Scorecard(Process):
    """Keeps every primary prediction with its vector, for the first champion to score as well."""

    def __init__(self, world: World, registry: Registry) -> None:
        super().__init__(world, {topics.PREDICTIONS.of(world.pipeline.name): self._keep})
        self._registry = registry
        self._columns = _Columns()

    def _keep(self, records: Sequence[Record]) -> None:
        columns = self._columns
        for record in records:
            batch = LedgerBatch.decode(record.value).batch
            ledger = LedgerBatch(batch.filter(batch.column("is_primary")))
            if not len(ledger):
                continue
            columns.ids += ledger.strings("event_id")
            columns.times.append(ledger.numbers("event_time").astype(np.int64))
            # A model that failed has flagged nothing.
            columns.live.append(np.nan_to_num(ledger.numbers("score"), nan=0.0))
            decisions = ledger.batch.column("decision").cast(pa.int8()).fill_null(0)
            columns.live_decisions.append(decisions.to_numpy() > 0)
            columns.vectors.append(ledger.vectors())

    def scores(self, truth: Mapping[str, float]) -> Scores:
        """All rows whose truth is known; a label that never comes counts as the pipeline says."""
        columns, absent = self._columns, self.world.pipeline.source.label.absent
        if not columns.ids:
            nothing = np.empty(0)
            none = np.empty(0, np.bool_)
            return Scores(np.empty(0, np.int64), nothing, nothing, none, nothing, none)
        unknown = math.nan if absent == "drop" else float(absent)
        labels = np.array([truth.get(name, unknown) for name in columns.ids])
        times = np.concatenate(columns.times)
        known = np.flatnonzero(~np.isnan(labels))
        rows = known[np.argsort(times[known], kind="stable")]
        first = self._registry.loaded(FIRST_VERSION)
        static = first.scorer.score(np.concatenate(columns.vectors)[rows])
        return Scores(
            times[rows],
            (labels[rows] > 0.5).astype(np.float64),
            np.concatenate(columns.live)[rows],
            np.concatenate(columns.live_decisions)[rows],
            static,
            static >= first.version.threshold,
        )
