"""Streams assign as the rollout does; a challenger that does not answer costs no prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from homeostat.common.assignment import Variant
from homeostat.common.errors import TransientError
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import Pipeline
from homeostat.common.schemas.rollouts import Phase, RolloutSnapshot
from homeostat.common.schemas.vectors import VectorBatch
from homeostat.common.windows import Status
from homeostat.inference.lanes import Assigner, lanes, prediction_ids, score_lane
from homeostat.inference.models import LoadedModel
from homeostat.inference.scorer import load

COUNT = 400


class Loaded:
    """What lanes ask of ``Models``."""

    def __init__(self, *models: LoadedModel) -> None:
        self._models = {model.version.version: model for model in models}

    def champion(self, _pipeline: str) -> LoadedModel:
        return self._models[1]

    def get(self, _pipeline: str, version: int) -> LoadedModel:
        if version not in self._models:
            raise TransientError(f"version {version} is quarantined")
        return self._models[version]


@pytest.fixture
def trained(workshop: Any, make_pipeline: Callable[..., Pipeline]) -> dict[int, Any]:
    return {number: workshop.train(make_pipeline("fraud"), number) for number in (1, 2)}


def loaded(trained: dict[int, Any], *numbers: int) -> Any:
    return Loaded(
        *(
            LoadedModel(trained[n].version, load(trained[n].version, trained[n].content))
            for n in numbers
        )
    )


def vectors(trained: dict[int, Any]) -> VectorBatch:
    random = np.random.default_rng(3)
    version = trained[1].version
    return VectorBatch(
        definition_hash=version.definition_hash,
        features=version.features,
        ids=[f"e{n}" for n in range(COUNT)],
        units=[f"u{n}" for n in range(COUNT)],
        times=np.arange(COUNT),
        intakes=np.arange(COUNT),
        values=random.normal(20, 10, (COUNT, 4)),
        statuses=np.zeros((COUNT, 4), np.uint8),
        is_scored=np.ones(COUNT, np.bool_),
        entities={"customer": [f"u{n}" for n in range(COUNT)], "terminal": [None] * COUNT},
        partition=2,
        offsets=np.arange(COUNT),
        traceparents=[None] * COUNT,
    )


def test_a_status_that_is_refused_leaves_its_row_without_a_score(
    trained: dict[int, Any], make_pipeline: Callable[..., Pipeline]
) -> None:
    features = dict(make_pipeline("fraud").features)
    features["terminal_count_1h"] = features["terminal_count_1h"].model_copy(
        update={"refuse": ("missing", "null")}
    )
    view = FeatureView(make_pipeline("fraud").model_copy(update={"features": features}))
    batch = vectors(trained)
    batch.statuses[3, 3] = Status.MISSING
    batch.statuses[4, 2] = Status.MISSING  # of a feature that refuses nothing
    batch.statuses[5, 3] = Status.STALE
    idle = RolloutSnapshot("fraud", "salt", 1, 1, Phase.IDLE, 1)
    (lane,) = lanes(loaded(trained, 1), Assigner(idle), batch.units, is_primary=True)

    ledger = score_lane(
        batch, lane, idle, view=view, traceparents=batch.traceparents, at=np.arange(COUNT)
    )

    assert view.definition_hash == trained[1].version.definition_hash
    assert np.flatnonzero(np.isnan(ledger.numbers("score"))).tolist() == [3]
    assert ledger.strings("error")[3] == "features.terminal_count_1h: is missing"


CANARY = RolloutSnapshot("fraud", "salt", 1, 1, Phase.CANARY, 1, 2, share=0.3, holdback=0.05)


def test_rows_go_where_the_rollout_assigns_their_units(trained: dict[int, Any]) -> None:
    batch = vectors(trained)

    found = lanes(loaded(trained, 1, 2), Assigner(CANARY), batch.units, is_primary=True)

    for lane in found:
        assert {CANARY.assign(batch.units[row]) for row in lane.rows.tolist()} == {lane.variant}
        assert lane.propensity == CANARY.split.propensity(lane.variant)
        assert lane.is_primary
    assert sum(len(lane.rows) for lane in found) == COUNT


def test_a_shadow_scores_beside_the_champion_and_is_never_primary(trained: dict[int, Any]) -> None:
    batch = vectors(trained)
    shadow = RolloutSnapshot("fraud", "salt", 1, 1, Phase.SHADOW, 1, 2, is_shadowing=True)

    found = lanes(loaded(trained, 1, 2), Assigner(shadow), batch.units, is_primary=True)

    assert [(lane.variant, lane.version, len(lane.rows), lane.is_primary) for lane in found] == [
        (Variant.CHAMPION, 1, COUNT, True),
        (Variant.SHADOW, 2, COUNT, False),
    ]


def test_a_challenger_that_cannot_answer_leaves_every_prediction_to_the_champion(
    trained: dict[int, Any],
) -> None:
    batch = vectors(trained)
    at = np.arange(COUNT)

    found = lanes(loaded(trained, 1), Assigner(CANARY), batch.units, is_primary=True)
    champion, challenger = (
        score_lane(batch, lane, CANARY, traceparents=batch.traceparents, at=at) for lane in found
    )

    assert len(champion) == COUNT
    assert np.array_equal(champion.numbers("score"), trained[1].expected(batch.values))
    assert 0 < len(challenger) < COUNT
    assert challenger.batch.column("score").null_count == len(challenger)
    assert set(challenger.strings("error")) == {"version 2 is quarantined"}
    # An event has a vector of each definition: it is told to have failed once.
    assert [lane.takes(batch) for lane in found] == [True, True]
    other = dataclasses.replace(batch, definition_hash="another")
    assert [lane.takes(other) for lane in found] == [False, False]
    assert not any(challenger.batch.column("is_primary").to_pylist())


def test_ledger_rows_hold_what_the_model_saw(trained: dict[int, Any]) -> None:
    batch = vectors(trained)
    batch.values[0, 1] = np.nan
    batch.values[1, 0] = np.inf
    idle = RolloutSnapshot("fraud", "salt", 1, 1, Phase.IDLE, 1)
    (lane,) = lanes(loaded(trained, 1), Assigner(idle), batch.units, is_primary=True)

    ledger = score_lane(batch, lane, idle, traceparents=["tp"] * COUNT, at=np.arange(COUNT) + 5)

    scores = ledger.numbers("score")
    assert np.isnan(scores[1])
    assert ledger.strings("error")[1] == "a value is infinite"
    fine = np.arange(COUNT) != 1
    assert np.array_equal(scores[fine], trained[1].expected(batch.values[fine]))
    assert np.array_equal(ledger.vectors(), batch.values, equal_nan=True)
    assert ledger.batch.column("entities").to_pylist()[7] == [
        ("customer", "u7"),
        ("terminal", None),
    ]
    assert ledger.numbers("at").tolist() == list(range(5, COUNT + 5))


def test_prediction_ids_are_told_by_position_and_variant_alone(trained: dict[int, Any]) -> None:
    batch = vectors(trained)
    again = dataclasses.replace(batch, ids=["other"] * COUNT)

    ids = prediction_ids(batch, Variant.CHAMPION)

    assert prediction_ids(again, Variant.CHAMPION) == ids
    assert len({*ids, *prediction_ids(batch, Variant.SHADOW)}) == 2 * COUNT
