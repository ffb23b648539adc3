"""What ``predict`` answers: typed once, so that REST, OpenAPI and tests mean the same."""

from __future__ import annotations

from typing import Any

import msgspec

from homeostat.common.assignment import Variant
from homeostat.common.errors import HomeostatError, problem
from homeostat.common.feature_store.reading import FeatureValue, shown
from homeostat.inference.scoring import Row, Scored


class ModelReference(msgspec.Struct, frozen=True):
    name: str
    version: int
    variant: Variant


class Answer(msgspec.Struct, frozen=True):
    prediction_id: str
    score: float
    decision: bool
    threshold: float
    model: ModelReference
    features: dict[str, FeatureValue]
    degraded: bool


class Refusal(msgspec.Struct, frozen=True):
    """A row of a batch that has no prediction."""

    status: int
    problem: dict[str, Any]


class Answers(msgspec.Struct, frozen=True):
    predictions: list[Answer | Refusal]


def answer(row: Row, scored: Scored) -> Answer:
    version = row.model.version
    features = scored.features
    return Answer(
        prediction_id=row.prediction_id,
        score=scored.score,
        decision=scored.decision,
        threshold=version.threshold,
        model=ModelReference(version.pipeline, version.version, row.variant),
        features=shown(version.features, features.values, features.statuses),
        degraded=features.is_degraded,
    )


def refusal(error: HomeostatError) -> Refusal:
    document = problem(error)
    return Refusal(document["status"], document)
