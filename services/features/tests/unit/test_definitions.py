"""Which definitions are needed, and which one answers, from what is known of them."""

from __future__ import annotations

from homeostat.common.feature_store.definitions import Definition
from homeostat.common.pipeline import Pipeline, Snapshot
from homeostat.features.definitions import PipelineDefinitions
from homeostat.features.supervision import Role
from homeostat.features.workers import jobs_of


def defined(generation: int, window: str, *, is_live: bool) -> Definition:
    pipeline = Pipeline.model_validate(
        {
            "apiVersion": "homeostat/v1",
            "name": "payments",
            "owner": "tests",
            "source": {
                "id": "id",
                "time": "at",
                "key": "card",
                "label": {"field": "bad", "maturity": "1d"},
            },
            "unit": "card",
            "fields": {"id": "string", "card": "string"},
            "features": {
                "count": {"entity": "card", "aggregate": "count()", "window": f"sliding {window}"}
            },
        }
    )
    return Definition(Snapshot(pipeline, generation), is_live)


def known(*definitions: Definition) -> dict[str, Definition]:
    return {definition.view.definition_hash: definition for definition in definitions}


FIRST, SECOND = defined(1, "1h", is_live=True), defined(2, "2h", is_live=True)
NEW, NEW_LIVE = defined(3, "3h", is_live=False), defined(3, "3h", is_live=True)


def test_the_first_definition_answers_from_the_beginning() -> None:
    for told in ({}, known(NEW)):
        first = PipelineDefinitions(NEW, told)

        assert first.serving is NEW
        assert [*first.needed([]).values()] == [NEW]
    assert PipelineDefinitions(NEW, {}).filling is None


def test_the_newest_live_one_answers_until_a_new_one_has_caught_up() -> None:
    for told in (known(FIRST, SECOND), known(FIRST, SECOND, NEW)):  # either record comes first
        changed = PipelineDefinitions(NEW, told)

        assert changed.filling is NEW
        assert changed.serving is SECOND
        assert [*changed.needed([]).values()] == [SECOND, NEW]

    caught_up = PipelineDefinitions(NEW, known(FIRST, SECOND, NEW_LIVE))
    assert caught_up.filling is None
    assert caught_up.serving is NEW
    assert [*caught_up.needed([]).values()] == [NEW]


def test_the_input_has_a_worker_of_its_own_while_the_newest_fills() -> None:
    filling = jobs_of(PipelineDefinitions(NEW, known(SECOND, NEW)), [])
    live = jobs_of(PipelineDefinitions(NEW, known(SECOND, NEW_LIVE)), [SECOND.view.definition_hash])

    second, new = SECOND.view.definition_hash, NEW.view.definition_hash
    assert {what: job.role for what, job in filling.items()} == {
        second: Role.FOLD,
        new: Role.FOLD,
        Role.INTAKE: Role.INTAKE,
    }
    assert filling[Role.INTAKE].snapshot is NEW.snapshot
    assert {what: job.role for what, job in live.items()} == {second: Role.FOLD, new: Role.ALL}


def test_what_models_pin_is_needed_as_long_as_it_is_known() -> None:
    definitions = PipelineDefinitions(NEW, known(FIRST, NEW_LIVE))

    pinned = [FIRST.view.definition_hash, SECOND.view.definition_hash]

    assert [*definitions.needed(pinned).values()] == [FIRST, NEW]


def test_going_back_to_a_definition_that_is_live_needs_no_catching_up() -> None:
    again = defined(4, "1h", is_live=False)

    back = PipelineDefinitions(again, known(defined(4, "1h", is_live=True), SECOND))

    assert back.filling is None
    assert back.serving is again


def test_of_a_pipeline_that_is_gone_nothing_is_needed() -> None:
    gone = PipelineDefinitions(None, known(FIRST))

    assert (gone.filling, gone.serving, gone.needed([FIRST.view.definition_hash])) == (
        None,
        None,
        {},
    )


def test_a_definition_comes_back_from_its_record() -> None:
    back = Definition.decode(NEW_LIVE.encode())

    assert (back.key, back.is_live, back.snapshot.generation) == (NEW.key, True, 3)
    assert back.key == f"payments/{NEW.view.definition_hash}"
