"""Synthetic traffic for the drift service: a pipeline, a reference, ledger rows and outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from homeostat.common.assignment import Variant
from homeostat.common.pipeline import Pipeline
from homeostat.common.schemas.labels import Outcome
from homeostat.common.schemas.ledger import Path, Prediction
from homeostat.common.schemas.models import (
    Artifact,
    Distribution,
    Golden,
    ModelVersion,
    Reference,
    VersionState,
)

HOUR = 3_600_000
START = 400_000 * HOUR  # a round instant in 2015
THRESHOLD = 0.7


class Traffic:
    """Seeded events with two features (a heavy-tailed amount, a small count) and a noisy label.

    Once ``concept`` is inverted the label no longer follows the score.
    """

    def __init__(self, *, seed: int, name: str = "fraud", per_hour: int = 600) -> None:
        self.random = np.random.default_rng(seed)
        self.name = name
        self.per_hour = per_hour
        self.events = 0

    def pipeline(self, **drift: Any) -> Pipeline:
        return Pipeline.model_validate(
            {
                "name": self.name,
                "owner": "tests",
                "source": {
                    "id": "id",
                    "time": "time",
                    "key": "customer",
                    "label": {"field": "label", "maturity": "6h", "absent": 0},
                },
                "unit": "customer",
                "fields": {"id": "string", "customer": "string", "amount": "float"},
                "features": {
                    "amount_now": {"expression": "amount"},
                    "visits": {
                        "entity": "customer",
                        "aggregate": "count()",
                        "window": "sliding 2h",
                    },
                },
                "scoring": "stream",
                "training": {"cooldown": "2h"},
                "drift": {
                    "window": "1h",
                    "min_samples": 300,
                    "performance": {"metric": "f1", "window": "12h", "min_positives": 30},
                }
                | drift,
            }
        )

    def version(self, number: int = 1) -> ModelVersion:
        vectors, scores, label = self.draw(20_000)
        features = ("amount_now", "visits")
        return ModelVersion(
            pipeline=self.name,
            version=number,
            state=VersionState.APPROVED,
            created_at=START,
            available_at=START,
            cause="manual",
            artifact=Artifact(sha256="0" * 64, size_bytes=1, uri=""),
            features=features,
            definition_hash="d",
            threshold=THRESHOLD,
            golden=Golden((), ()),
            reference=Reference(
                features={
                    feature: distribution(vectors[:, place])
                    for place, feature in enumerate(features)
                },
                scores=distribution(scores),
                positive_share=float(label.mean()),
                metrics={"f1": f1(scores > THRESHOLD, label)},
            ),
        )

    def draw(
        self,
        n: int,
        *,
        scale: float = 1.0,
        shift: float = 0.0,
        null_share: float = 0.0,
        is_inverted: bool = False,
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        amount = scale * self.random.lognormal(3 + shift, 1.0, n)
        amount[self.random.random(n) < null_share] = np.nan
        visits = self.random.poisson(3, n).astype(float)
        score = self.random.beta(2, 4, n)
        chance = 1 - score if is_inverted else score
        label = self.random.random(n) < chance**3
        return np.column_stack([amount, visits]), score, label.astype(float)

    def hour(
        self, number: int, *, version: int = 1, **changes: Any
    ) -> tuple[list[Prediction], list[Outcome]]:
        """One hour's predictions, and the outcomes of those events, known after the maturity."""
        vectors, scores, labels = self.draw(self.per_hour, **changes)
        times = START + number * HOUR + np.sort(self.random.integers(0, HOUR, self.per_hour))
        predictions, outcomes = [], []
        for vector, score, label, time in zip(vectors, scores, labels, times, strict=True):
            self.events += 1
            event = f"e{self.events}"
            predictions.append(
                prediction(event, int(time), float(score), vector=vector, version=version)
            )
            if label:
                outcomes.append(
                    Outcome(
                        id=event,
                        label=1.0,
                        event_time=int(time),
                        available_at=int(time) + 6 * HOUR,
                        entities={},
                    )
                )
        return predictions, outcomes


def prediction(
    event: str, at: int, score: float, *, vector: Sequence[float], version: int = 1
) -> Prediction:
    return Prediction(
        prediction_id=f"p-{event}",
        event_id=event,
        unit="u",
        event_time=at,
        at=at,
        path=Path.STREAM,
        is_primary=True,
        variant=Variant.CHAMPION,
        version=version,
        rollout="r",
        propensity=1.0,
        score=score,
        decision=score > THRESHOLD,
        vector=tuple(None if np.isnan(each) else float(each) for each in vector),
        statuses=(0,) * len(vector),
        definition_hash="d",
    )


def distribution(values: np.ndarray[Any, Any], bins: int = 30) -> Distribution:
    known = values[~np.isnan(values)]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)[1:-1]))
    counts = np.bincount(np.searchsorted(edges, known, side="right"), minlength=len(edges) + 1)
    return Distribution(
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
        missing=int(np.isnan(values).sum()),
    )


def f1(said: np.ndarray[Any, Any], label: np.ndarray[Any, Any]) -> float:
    true = label > 0.5
    return float(2 * (said & true).sum() / (said.sum() + true.sum()))


@pytest.fixture
def traffic() -> Traffic:
    return Traffic(seed=7)
