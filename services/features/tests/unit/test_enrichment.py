"""A stage: whatever it puts together, each key sees its events and labels in the log's order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.common.event_columns import EventColumns, event_hashes
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import Pipeline
from homeostat.features.enrichment import Run, Stage
from homeostat.features.hops import EventHops, Hops, LabelHops

START = 1_700_000_000_000
SHARE = {"aggregate": "mean(label)", "window": "sliding 1h"}
FEATURES = {
    "card_count": {"entity": "card", "aggregate": "count()", "window": "sliding 1h"},
    "shop_bad": {"entity": "shop", **SHARE},
    "device_bad": {"entity": "device", **SHARE},
}
KEYS = {"card": "abc", "shop": "xy", "device": "pqrs"}

Step = tuple[bool, tuple[str | None, ...]]
STEPS = st.lists(
    st.tuples(
        st.booleans(), st.tuples(*(st.sampled_from([None, *keys]) for keys in KEYS.values()))
    ),
    max_size=40,
)


@pytest.fixture(scope="module")
def view() -> FeatureView:
    return FeatureView(
        Pipeline.model_validate(
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
                "fields": {
                    "id": "string",
                    **{name: {"type": "string", "optional": name != "card"} for name in KEYS},
                },
                "features": FEATURES,
            }
        )
    )


def hop(view: FeatureView, number: int, step: Step) -> Hops:
    """An event, or a joined label, whose id is its number."""
    is_event, given_keys = step
    keys = {name: [key] for name, key in zip(KEYS, given_keys, strict=True)}
    name, one = f"e{number}", np.array([number])
    times = START + one * 1_000
    if not is_event:
        return LabelHops([name], event_hashes([name]), keys, times, times, np.ones(1), one, [None])
    return EventHops(
        EventColumns([name], times, {"id": [name], **keys}, {}),
        event_hashes([name]),
        times,
        np.ones(1, np.bool_),
        one,
        view.unanswered(1),
        [None],
        is_replayed=False,
    )


def in_order(runs: Sequence[Run]) -> list[Hops]:
    hops: list[Hops] = []
    for labels, events in runs:
        hops += labels
        if events is not None:
            hops.append(events)
    return hops


def passing(hops: Sequence[Hops], entity: str, key: str) -> list[tuple[bool, str]]:
    """What concerns a key, in order: whether it is an event, and its id."""
    found = []
    for part in hops:
        is_event = isinstance(part, EventHops)
        ids = part.columns.ids if isinstance(part, EventHops) else part.ids
        keys = part.columns.strings[entity] if isinstance(part, EventHops) else part.keys_of(entity)
        found += [(is_event, name) for name, of in zip(ids, keys, strict=True) if of == key]
    return found


@settings(deadline=None)  # the first one compiles kernels
@given(steps=STEPS)
def test_each_key_that_folds_labels_sees_the_order_of_the_log(
    view: FeatureView, steps: list[Step]
) -> None:
    hops = [hop(view, number, step) for number, step in enumerate(steps)]

    for entity in view.entities:
        handed_on = in_order(Stage(view, entity).pass_through(hops))

        ahead = view.entities[view.entities.index(entity) :]
        for other in (name for name in ahead if view.folds[name].uses_labels):
            for key in KEYS[other]:
                assert passing(handed_on, other, key) == passing(hops, other, key)


@settings(deadline=None)  # the first one compiles kernels
@given(steps=STEPS)
def test_together_they_fold_to_the_bits_that_each_alone_does(
    view: FeatureView, steps: list[Step]
) -> None:
    for entity in view.entities:
        at_once, alone = Stage(view, entity), Stage(view, entity)

        runs = at_once.pass_through([hop(view, *step) for step in enumerate(steps)])
        singly = [alone.pass_through([hop(view, *step)]) for step in enumerate(steps)]

        assert answers([runs]) == answers(singly)
        assert rows(at_once) == rows(alone)


def answers(passed: Sequence[Sequence[Run]]) -> dict[str, tuple[bytes, bytes]]:
    """The values and statuses that each event got."""
    return {
        name: (events.aggregates.values[row].tobytes(), events.aggregates.statuses[row].tobytes())
        for runs in passed
        for _, events in runs
        if events is not None
        for row, name in enumerate(events.columns.ids)
    }


def rows(stage: Stage) -> dict[str, bytes]:
    numbers = np.arange(len(stage.state), dtype=np.int32)
    packed = stage.fold.pack(stage.state, numbers)
    return dict(zip(stage.state.keys(numbers), packed, strict=True))


def test_labels_end_where_no_entity_ahead_folds_them(view: FeatureView) -> None:
    only_cards = FeatureView(
        view.pipeline.model_copy(
            update={"features": {"card_count": view.pipeline.features["card_count"]}}
        )
    )
    label = hop(only_cards, 0, (False, ("a", "x", "p")))

    assert Stage(only_cards, "card").pass_through([label]) == []
