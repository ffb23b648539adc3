"""Who scores which vectors of a batch, and the ledger rows that come of it. No I/O here.

A lane is the rows that one variant scores: the champion's, the challenger's, and in shadow the
rows that the challenger scores beside the champion.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from homeostat.common.assignment import BUCKETS, Variant, bucket
from homeostat.common.errors import NotFound, TransientError
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.schemas.ledger import LedgerBatch, Path
from homeostat.common.schemas.rollouts import RolloutSnapshot
from homeostat.common.schemas.vectors import VectorBatch
from homeostat.inference.models import LoadedModel
from homeostat.inference.scorer import ScoringFailed, is_probability, unusable

KNOWN_UNITS = 200_000  # whose buckets are remembered: a few tens of MB

Scores = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]


class LoadedModels(Protocol):
    """The models that answer now; ``homeostat.inference.models.Models`` keeps them in a service."""

    def champion(self, pipeline: str) -> LoadedModel:
        """Raises TransientError: there is none."""

    def get(self, pipeline: str, version: int) -> LoadedModel:
        """Raises NotFound or TransientError: that version does not answer."""


class Assigner:
    """Buckets of units under one rollout, remembered: the hash is what assignment costs."""

    def __init__(self, rollout: RolloutSnapshot) -> None:
        self.rollout = rollout
        self._buckets: dict[str, int] = {}
        split = rollout.split
        self._is_challenger = np.array(
            [split.variant(number) is Variant.CHALLENGER for number in range(BUCKETS)]
        )

    def follow(self, rollout: RolloutSnapshot) -> Assigner:
        """The assigner of a later snapshot; under the same salt the buckets stay known."""
        if rollout == self.rollout:
            return self
        later = Assigner(rollout)
        if rollout.rollout == self.rollout.rollout:
            later._buckets = self._buckets
        return later

    def is_challenger(self, units: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        known, salt = self._buckets, self.rollout.rollout
        if len(known) > KNOWN_UNITS:
            known.clear()
        buckets = np.empty(len(units), np.intp)
        for index, unit in enumerate(units):
            found = known.get(unit)
            if found is None:
                found = known[unit] = bucket(unit, salt=salt)
            buckets[index] = found
        flags: np.ndarray[tuple[int], np.dtype[np.bool_]] = self._is_challenger[buckets]
        return flags


@dataclass(frozen=True)
class Lane:
    """Rows of a batch that one variant scores; ``model`` is ``None`` when it cannot."""

    variant: Variant
    rows: Numbers
    model: LoadedModel | None
    definition_hash: str  # of the vectors that it takes; without a model, those of the champion
    version: int
    is_primary: bool
    propensity: float
    error: str | None = None

    def takes(self, vectors: VectorBatch) -> bool:
        """Whether the model was trained on such vectors: same definition, same order."""
        return self.definition_hash == vectors.definition_hash and (
            self.model is None or self.model.version.features == vectors.features
        )


def lanes(
    models: LoadedModels, assigner: Assigner, units: Sequence[str], *, is_primary: bool
) -> list[Lane]:
    """Who scores what. A challenger that does not answer leaves its rows, failed, to the champion.

    Raises:
        TransientError: no champion answers.
    """
    rollout = assigner.rollout
    champion = models.champion(rollout.pipeline)
    rows = np.arange(len(units))
    if rollout.challenger is None:
        version = champion.version
        digest, number = version.definition_hash, version.version
        return [Lane(Variant.CHAMPION, rows, champion, digest, number, is_primary, 1.0)]
    challenger, error = _challenger(models, rollout)
    given = assigner.is_challenger(units)
    split = rollout.split

    def lane(variant: Variant, chosen: Numbers, *, primary: bool) -> Lane:
        is_champion = variant is Variant.CHAMPION
        model = champion if is_champion else challenger
        return Lane(
            variant=variant,
            rows=chosen,
            model=model,
            definition_hash=(model or champion).version.definition_hash,
            version=champion.version.version if is_champion else rollout.challenger or 0,
            is_primary=primary,
            propensity=1.0 if variant is Variant.SHADOW else split.propensity(variant),
            error=None if is_champion else error,
        )

    stands_in = rows if challenger is None else rows[~given]
    found = [
        lane(Variant.CHAMPION, stands_in, primary=is_primary),
        lane(Variant.CHALLENGER, rows[given], primary=is_primary and challenger is not None),
    ]
    if rollout.is_shadowing:
        found.append(lane(Variant.SHADOW, rows[~given], primary=False))
    return [item for item in found if len(item.rows)]


def _challenger(
    models: LoadedModels, rollout: RolloutSnapshot
) -> tuple[LoadedModel | None, str | None]:
    try:
        return models.get(rollout.pipeline, rollout.challenger or 0), None
    except (NotFound, TransientError) as error:
        return None, error.detail


def score_lane(
    vectors: VectorBatch,
    lane: Lane,
    rollout: RolloutSnapshot,
    *,
    view: FeatureView | None = None,
    traceparents: Sequence[str | None],
    at: Numbers,
    timer: Callable[[], float] = time.perf_counter,
) -> LedgerBatch:
    """The ledger rows of one lane: a row without a score is there too, with its error.

    ``view`` says with which statuses of its features there is none.
    """
    started = timer()
    part = vectors.take(lane.rows)
    count = len(part)
    model = lane.model
    if model is None:
        scores, errors = _nothing(count), [lane.error] * count
    else:
        scores, errors = _scores(model, part.values)
        if view is not None:
            for row, violations in view.refused(part.statuses, part.features).items():
                scores[row], errors[row] = np.nan, ", ".join(map(str, violations))
    is_missing = np.isnan(scores)
    decision = (
        None if model is None else pa.array(scores >= model.version.threshold, mask=is_missing)
    )
    latency = round((timer() - started) * 1e6)
    rows = lane.rows.tolist()
    return LedgerBatch.of_columns(
        {
            "prediction_id": pa.array(prediction_ids(part, lane.variant), pa.string()),
            "event_id": pa.array(part.ids, pa.string()),
            "unit": pa.array(part.units, pa.string()),
            "event_time": pa.array(part.times, pa.int64()),
            "at": pa.array(at[lane.rows], pa.int64()),
            "path": pa.repeat(pa.scalar(Path.STREAM.value, pa.string()), count),
            "is_primary": pa.repeat(pa.scalar(lane.is_primary), count),
            "variant": pa.repeat(pa.scalar(lane.variant.value, pa.string()), count),
            "version": pa.repeat(pa.scalar(lane.version, pa.int32()), count),
            "rollout": pa.repeat(pa.scalar(rollout.rollout, pa.string()), count),
            "propensity": pa.repeat(pa.scalar(lane.propensity, pa.float64()), count),
            "score": pa.array(scores, pa.float64(), mask=is_missing),
            "decision": pa.nulls(count, pa.bool_()) if decision is None else decision,
            "vector": _lists(np.ascontiguousarray(part.values), pa.float64()),
            "statuses": _lists(np.ascontiguousarray(part.statuses), pa.uint8()),
            "definition_hash": pa.repeat(pa.scalar(part.definition_hash, pa.string()), count),
            "latency_us": pa.repeat(pa.scalar(latency, pa.int64()), count),
            "error": pa.array(errors, pa.string()),
            "traceparent": pa.array([traceparents[row] for row in rows], pa.string()),
            "entities": _entities(part),
        }
    )


def _nothing(count: int) -> Scores:
    return np.full(count, np.nan)


def _scores(
    model: LoadedModel, values: np.ndarray[tuple[int, int], np.dtype[np.float64]]
) -> tuple[Scores, list[str | None]]:
    """Scores, NaN where there is none, and why."""
    unfit = unusable(values)
    try:
        scores = model.scorer.score(np.where(unfit[:, None], np.nan, values))
    except ScoringFailed as error:
        return _nothing(len(values)), [error.detail] * len(values)
    failed = ~is_probability(scores)
    errors: list[str | None] = [None] * len(values)
    for row in np.flatnonzero(failed | unfit).tolist():
        errors[row] = "a value is infinite" if unfit[row] else f"the model's score is {scores[row]}"
    return np.where(failed | unfit, np.nan, scores), errors


def prediction_ids(vectors: VectorBatch, variant: Variant) -> list[str]:
    """The same for the same vector and variant, whoever scores it and however often."""
    prefix = f"{vectors.definition_hash}:{vectors.partition}:"
    return [
        hashlib.blake2b(f"{prefix}{offset}:{variant}".encode(), digest_size=16).hexdigest()
        for offset in vectors.offsets.tolist()
    ]


def _lists(
    values: np.ndarray[tuple[int, int], np.dtype[np.generic]], kind: pa.DataType
) -> pa.Array:
    count, width = values.shape
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1), kind))


def _entities(vectors: VectorBatch) -> pa.Array:
    names = [*vectors.entities]
    columns = [vectors.entities[name] for name in names]
    return pa.array(
        [list(zip(names, keys, strict=True)) for keys in zip(*columns, strict=True)]
        if names
        else [[]] * len(vectors),
        pa.map_(pa.string(), pa.string()),
    )
