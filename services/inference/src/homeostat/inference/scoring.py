"""The data plane: rows from any edge, coalesced, looked up, scored and written to the ledger.

One batch is one read of the online store, one evaluation and one call of each model in it. A row
that fails fails alone.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from homeostat.common.assignment import Variant
from homeostat.common.errors import HomeostatError, InvalidInput
from homeostat.common.pipeline import ScoringPath
from homeostat.common.schemas.ledger import Path, Prediction
from homeostat.common.windows import Status
from homeostat.inference import tracing
from homeostat.inference.batching import NO_DEADLINE, Batcher
from homeostat.inference.ledger import Entry
from homeostat.inference.models import LoadedModel
from homeostat.inference.pipelines import ServedPipeline
from homeostat.inference.scorer import ScoringFailed, is_probability, unusable

F64 = np.ndarray[tuple[int], np.dtype[np.float64]]
U8 = np.ndarray[tuple[int], np.dtype[np.uint8]]

# An event as JSON; the keys of entities; or ready values in the order of the version's features.
Input = bytes | Mapping[str, str] | Sequence[float]


@dataclass(frozen=True, slots=True)
class Row:
    """One row to score, with everything that its edge has resolved."""

    served: ServedPipeline
    model: LoadedModel
    variant: Variant
    prediction_id: str
    unit: str
    input: Input
    rollout: str = ""
    propensity: float = 1.0
    deadline: float = NO_DEADLINE  # monotonic seconds
    traceparent: str | None = None
    available_at: int | None = None  # epoch ms, under replay

    @property
    def now_millis(self) -> int:
        """The instant of the request on the pipeline's clock."""
        if self.available_at is not None:
            return self.available_at
        return self.served.clock.now_millis()


@dataclass(frozen=True, slots=True)
class Features:
    """The vector of one row, in the order of the model's features, and where it came from."""

    values: F64
    statuses: U8
    age_ms: int = 0
    is_degraded: bool = False
    event_id: str = ""
    event_time: int = 0
    entities: Mapping[str, str | None] = field(default_factory=dict)
    offsets: Mapping[str, int] = field(default_factory=dict)  # of the entities' logs (see ledger)


@dataclass(frozen=True, slots=True)
class Scored:
    score: float
    decision: bool
    features: Features


class FeatureSource(Protocol):
    async def read(self, rows: Sequence[Row]) -> Sequence[Features | HomeostatError]:
        """The features of rows that bring an event or entity keys; one round trip for all."""


class LedgerSink(Protocol):
    def write(self, pipeline: str, entries: Sequence[Entry]) -> None: ...


class DataPlane:
    def __init__(
        self,
        features: FeatureSource,
        ledger: LedgerSink,
        *,
        max_batch_rows: int,
        queue_rows: int,
    ) -> None:
        self._features = features
        self._ledger = ledger
        self._max_batch_rows = max_batch_rows
        self._queue_rows = queue_rows
        self._batchers: dict[str, Batcher[Row, Scored]] = {}

    async def score(self, rows: Sequence[Row]) -> list[Scored | HomeostatError]:
        """The result of each row, in order. All rows are of one pipeline.

        Raises:
            Overloaded: the pipeline's queue is full.
        """
        if not rows:
            return []
        name = rows[0].served.name
        batcher = self._batchers.get(name)
        if batcher is None:
            batcher = self._batchers[name] = Batcher(
                self._run, max_rows=self._max_batch_rows, capacity=self._queue_rows
            )
        results = await batcher.submit(rows)
        measured = rows[0].served.metrics
        measured.queue_rows(len(batcher))
        for status, count in Counter(_status(result) for result in results).items():
            measured.rows(status, count)
        return results

    async def drain(self) -> None:
        for batcher in self._batchers.values():
            await batcher.drain()

    async def _run(self, rows: list[Row]) -> list[Scored | HomeostatError]:
        started = time.perf_counter()
        served = rows[0].served
        with tracing.score_spans(served.name, [row.traceparent for row in rows]) as onward:
            results = _score(rows, await self._vectors(rows))
            elapsed = time.perf_counter() - started
            entries = [
                Entry(_prediction(row, result, traceparent, round(elapsed * 1e6)), row.available_at)
                for row, result, traceparent in zip(rows, results, onward, strict=True)
                if isinstance(result, Scored | _Unscored)
            ]
            self._ledger.write(served.name, entries)
        self._measure(rows, results, elapsed)
        return [result.error if isinstance(result, _Unscored) else result for result in results]

    async def _vectors(self, rows: Sequence[Row]) -> list[Features | HomeostatError]:
        found: list[Features | HomeostatError | None] = [
            _ready_vector(row, row.input)
            if isinstance(row.input, Sequence) and not isinstance(row.input, bytes)
            else None
            for row in rows
        ]
        waiting = [index for index, features in enumerate(found) if features is None]
        if waiting:
            read = await self._features.read([rows[index] for index in waiting])
            for index, features in zip(waiting, read, strict=True):
                found[index] = features
        return [features for features in found if features is not None]

    def _measure(self, rows: list[Row], results: Sequence[object], elapsed: float) -> None:
        measured = rows[0].served.metrics
        measured.batch_seconds(elapsed)
        measured.batch_rows(len(rows))
        degraded = sum(isinstance(r, Scored) and r.features.is_degraded for r in results)
        if degraded:
            measured.degraded(degraded)


def _status(result: Scored | HomeostatError) -> int:
    return int(result.status) if isinstance(result, HomeostatError) else 200


@dataclass(frozen=True, slots=True)
class _Unscored:
    """A valid row for which the model had no answer: it is in the ledger, with its error."""

    error: ScoringFailed
    features: Features


def _score(
    rows: Sequence[Row], vectors: Sequence[Features | HomeostatError]
) -> list[Scored | _Unscored | HomeostatError]:
    """Score each model's rows in one call."""
    results: list[Scored | _Unscored | HomeostatError] = [
        vector if isinstance(vector, HomeostatError) else _UNFIT for vector in vectors
    ]
    by_model: dict[LoadedModel, list[tuple[int, Features]]] = defaultdict(list)
    for index, (row, vector) in enumerate(zip(rows, vectors, strict=True)):
        if not isinstance(vector, HomeostatError):
            by_model[row.model].append((index, vector))
    for model, items in by_model.items():
        for index, result in zip(
            [index for index, _ in items],
            score_with(model, [features for _, features in items]),
            strict=True,
        ):
            results[index] = result
    return results


def score_with(
    model: LoadedModel, features: Sequence[Features]
) -> list[Scored | _Unscored | HomeostatError]:
    values = np.stack([item.values for item in features])
    unfit = unusable(values)
    try:
        scores = model.scorer.score(np.where(unfit[:, None], np.nan, values))
    except ScoringFailed as error:
        return [_Unscored(error, item) for item in features]
    fine = is_probability(scores)
    threshold = model.version.threshold
    results: list[Scored | _Unscored | HomeostatError] = []
    for row, (score, item) in enumerate(zip(scores.tolist(), features, strict=True)):
        if unfit[row]:
            results.append(_UNFIT)
        elif fine[row]:
            results.append(Scored(score, score >= threshold, item))
        else:
            results.append(_Unscored(ScoringFailed(f"the model's score is {score}"), item))
    return results


_UNFIT = InvalidInput(
    "a value is infinite, or too large for single precision", fix="send null for what is unknown"
)


def _ready_vector(row: Row, values: Sequence[float]) -> Features | HomeostatError:
    names = row.model.version.features
    if len(values) != len(names):
        return InvalidInput(
            f"{len(values)} values, but {row.model.name} takes {len(names)}",
            fix=f"in this order: {', '.join(names)}",
        )
    vector = np.array(values, np.float64)
    statuses = np.where(np.isnan(vector), Status.NULL, Status.PRESENT).astype(np.uint8)
    return Features(vector, statuses, event_time=row.now_millis)


def _prediction(
    row: Row, result: Scored | _Unscored, traceparent: str | None, latency_us: int
) -> Prediction:
    features = result.features
    scored = result if isinstance(result, Scored) else None
    version = row.model.version
    return Prediction(
        prediction_id=row.prediction_id,
        event_id=features.event_id,
        unit=row.unit,
        event_time=features.event_time,
        at=row.now_millis,
        path=Path.REQUEST,
        is_primary=row.served.pipeline.scoring is ScoringPath.REQUEST
        and row.variant is not Variant.SHADOW,
        variant=row.variant,
        version=version.version,
        rollout=row.rollout,
        propensity=row.propensity,
        score=scored.score if scored else None,
        decision=scored.decision if scored else None,
        vector=tuple(features.values.tolist()),  # NaN is null in JSON
        statuses=tuple(features.statuses.tolist()),
        definition_hash=version.definition_hash,
        latency_us=latency_us,
        error=result.error.detail if isinstance(result, _Unscored) else None,
        traceparent=traceparent,
        entities=dict(features.entities),
        offsets=dict(features.offsets),
    )
