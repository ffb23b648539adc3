"""Which definitions of the features a pipeline is served with."""

from __future__ import annotations

from pathlib import Path

import pytest

from homeostat.common.errors import TransientError
from homeostat.common.feature_store.definitions import Definition
from homeostat.common.pipeline import ExpressionSpec, Snapshot, load
from homeostat.inference.pipelines import Pipelines

PIPELINE = load(Path(__file__).parents[4] / "pipelines/fraud/pipeline.yaml")


def generation(number: int) -> Definition:
    """The pipeline with one expression more each time."""
    added = {f"more_{n}": ExpressionSpec(expression=f"amount + {n}") for n in range(number)}
    changed = PIPELINE.model_copy(update={"features": {**PIPELINE.features, **added}})
    return Definition(Snapshot(changed, number), is_live=True)


def test_every_definition_that_is_kept_can_be_pinned_also_after_a_restart() -> None:
    first, _, third = generations = [generation(number) for number in (1, 2, 3)]
    pipelines = Pipelines()
    for definition in generations:
        pipelines.follow_definition(definition.key, definition)
    pipelines.follow(PIPELINE.name, third.snapshot)  # all that a restart hears of snapshots

    served = pipelines.get(PIPELINE.name)
    for definition in generations:
        digest = definition.view.definition_hash
        assert served.view(digest).feature_names == definition.view.feature_names
    assert served.pipeline is third.snapshot.pipeline

    pipelines.follow_definition(first.key, None)
    with pytest.raises(TransientError, match="the model was trained on definition"):
        served.view(first.view.definition_hash)


def test_the_newest_is_served_before_its_definition_is_told() -> None:
    pipelines, newest = Pipelines(), generation(1)

    pipelines.follow(PIPELINE.name, newest.snapshot)

    assert pipelines.get(PIPELINE.name).view(newest.view.definition_hash)
