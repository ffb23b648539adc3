"""What publishing a pipeline leaves on its topics, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from homeostat.cli.publishing import definitions, plan, publish
from homeostat.cli.testing import SessionStack
from homeostat.common.errors import InvalidInput
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import ExpressionSpec, Pipeline, Snapshot, load

pytestmark = pytest.mark.integration
FRAUD = Path(__file__).parents[4] / "pipelines/fraud/pipeline.yaml"


def changed(pipeline: Pipeline) -> Pipeline:
    doubled = ExpressionSpec(expression="2 * amount")
    return pipeline.model_copy(update={"features": {**pipeline.features, "doubled": doubled}})


async def test_the_first_definition_is_live_and_a_changed_one_is_not_yet(
    stack: SessionStack,
) -> None:
    first = load(FRAUD).model_copy(update={"name": "published"})
    second = changed(first)

    for pipeline in (first, second, first):  # and back
        await publish(pipeline, bootstrap_servers=stack.kafka)

    told = {
        definition.view.definition_hash: (definition.is_live, definition.snapshot.generation)
        for definition in (await definitions(stack.kafka)).values()
        if definition.snapshot.pipeline.name == "published"
    }
    assert told == {
        FeatureView(first).definition_hash: (True, 3),
        FeatureView(second).definition_hash: (False, 2),
    }


def test_another_key_of_the_source_is_refused() -> None:
    pipeline = load(FRAUD)
    source = pipeline.source.model_copy(update={"key": "terminal_id"})

    with pytest.raises(InvalidInput, match=r"source\.key changes from customer_id to terminal_id"):
        plan(pipeline.model_copy(update={"source": source}), Snapshot(pipeline, 1))
