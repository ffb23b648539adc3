"""What the audit looks at, what it leaves out, and what it calls different."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from homeostat.common.event_columns import EventColumns, event_hashes
from homeostat.common.feature_store.views import FeatureView, Vectors
from homeostat.common.pipeline import Pipeline
from homeostat.common.schemas.vectors import VectorBatch
from homeostat.common.windows import Status
from homeostat.features.audit.histories import LOOSE_PARTS, Histories
from homeostat.features.audit.refolding import Served, differences, refolded, within
from homeostat.features.audit.review import Audit, Report, Skip
from homeostat.features.hops import EventHops, LabelHops, Sent

HOUR = 3_600_000
START = 472_000 * HOUR
FEATURES = {
    "spent_1h": {"entity": "card", "aggregate": "sum(amount)", "window": "sliding 1h"},
    "bad_2h": {
        "entity": "card",
        "aggregate": "mean(label)",
        "window": "sliding 2h",
        "delay": "1h",
    },
    "spent": {"entity": "card", "aggregate": "sum(amount)", "window": "lifetime"},
    "twice": {"expression": "spent_1h * 2"},
}


@pytest.fixture
def view() -> FeatureView:
    label = {"field": "bad", "maturity": "1d"}
    return FeatureView(
        Pipeline.model_validate(
            {
                "name": "payments",
                "owner": "tests",
                "source": {"id": "id", "time": "at", "key": "card", "label": label},
                "unit": "card",
                "fields": {
                    "id": "string",
                    "card": "string",
                    "amount": {"type": "decimal", "scale": 0.01},
                },
                "features": FEATURES,
            }
        )
    )


def sent(place: int, *ids: str, key: str = "c", amount: float = 1.0, source: int = 0) -> Sent:
    """A record of events, a second apart from their places on."""
    count = len(ids)
    places = np.arange(count) + place
    times = START + places * 1_000
    hops = EventHops(
        EventColumns(
            list(ids),
            times,
            {"id": list(ids), "card": [key] * count},
            {"amount": np.full(count, amount)},
        ),
        event_hashes(list(ids)),
        times,
        np.ones(count, np.bool_),
        places,
        Vectors(np.full((count, 3), np.nan), np.full((count, 3), Status.MISSING, np.uint8)),
        [None] * count,
        is_replayed=False,
    )
    return Sent(hops, "", source, places)


def labelled(place: int, name: str, *, key: str = "c") -> Sent:
    one = np.array([place])
    hops = LabelHops(
        [name], event_hashes([name]), {"card": [key]}, one, one, np.array([1.0]), one, [None]
    )
    return Sent(hops, "labels", 0, one)


def histories(**changes: Any) -> Histories:
    return Histories("card", **({"share": 1.0, "max_keys": 10, "max_rows": 1_000} | changes))


def test_what_was_sent_again_is_taken_once_and_the_order_is_the_logs() -> None:
    kept = histories()
    records = [sent(1, "a", "b"), labelled(3, "a"), sent(1, "a", "b"), sent(4, "d")]
    for offset, record in enumerate(records):
        kept.take(0, offset, record)

    history = kept.of("c")

    assert kept.positions == {0: 4}
    assert history is not None
    assert [part.places.tolist() for part in history.before(99)] == [[1, 2], [3], [4]]
    assert [part.places.tolist() for part in history.before(3)] == [[1, 2]]
    assert history.places_from(3) == [3, 4]
    assert history.at(2).columns.ids == ["b"]


def test_joining_loose_parts_keeps_their_order() -> None:
    kept = histories()
    for place in range(3 * LOOSE_PARTS):
        is_label = place % 10 == 5
        kept.take(0, place, labelled(place, "x") if is_label else sent(place, f"e{place}"))

    history = kept.of("c")

    assert history is not None
    parts = history.before(10**6)
    assert len(parts) < LOOSE_PARTS + 40
    assert np.concatenate([part.places for part in parts]).tolist() == [*range(3 * LOOSE_PARTS)]


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([sent(1, "a"), sent(2, "b"), sent(3, "a")], id="an-id-twice"),
        pytest.param([sent(1, "a", "a")], id="an-id-twice-in-one"),
        pytest.param([sent(1, *map(str, range(6)))], id="too-long"),
    ],
)
def test_a_key_whose_fold_is_in_doubt_leaves_for_good(records: list[Sent]) -> None:
    kept = histories(max_rows=5)
    for offset, record in enumerate([*records, sent(90, "z")]):
        kept.take(0, offset, record)

    assert (kept.of("c"), kept.has_all("c"), len(kept)) == (None, False, 0)
    assert kept.has_all("nobody")


def test_a_key_without_room_is_never_taken_later() -> None:
    kept = histories(max_keys=1, max_rows=1)
    kept.take(0, 0, sent(1, "a", key="first"))
    kept.take(0, 1, sent(2, "b", key="second"))
    kept.take(0, 2, sent(3, "c", key="first"))  # leaves: too long
    kept.take(0, 3, sent(4, "d", key="second"))

    assert kept.of("second") is None
    assert not kept.has_all("second")
    assert not kept.has_all("never-seen")


def test_a_share_of_keys_is_the_same_every_time() -> None:
    names = [f"c{number}" for number in range(4_000)]
    some, again, none = histories(share=0.1), histories(share=0.1), histories(share=0.0)

    chosen = [name for name in names if some.is_chosen(name)]

    assert 300 < len(chosen) < 500
    assert chosen == [name for name in names if again.is_chosen(name)]
    assert not any(none.is_chosen(name) for name in names)


def test_only_windows_that_lie_in_the_retained_log_are_compared(view: FeatureView) -> None:
    assert within(view, "card", START, None) == ("spent_1h", "bad_2h", "spent")
    assert within(view, "card", START, START - 2 * HOUR) == ()
    assert within(view, "card", START, START - 2 * HOUR - 1) == ("spent_1h",)
    assert within(view, "card", START, START - 5 * HOUR - 1) == ("spent_1h", "bad_2h")


def test_a_value_out_of_reach_says_nothing_and_a_stale_one_is_what_the_log_says() -> None:
    computed = {"a": (1.0, int(Status.PRESENT)), "b": (np.nan, int(Status.MISSING))}
    names = ("a", "b")

    def different(*served: tuple[float, Status]) -> list[str]:
        values = [value for value, _ in served]
        vector = Served(names, values, [int(status) for _, status in served])
        return [found.feature for found in differences(vector, computed, known=names)]

    missing = (np.nan, Status.MISSING)
    assert different((1.0, Status.PRESENT), missing) == []
    assert different((1.0, Status.STALE), missing) == []
    assert different((np.nan, Status.UNAVAILABLE), (np.nan, Status.UNAVAILABLE)) == []
    assert different((np.nextafter(1.0, 2.0), Status.PRESENT), missing) == ["a"]
    assert different((np.nan, Status.NULL), missing) == ["a"]
    assert different((1.0, Status.PRESENT), (np.nan, Status.NULL)) == ["b"]


def audit_of(view: FeatureView) -> Audit:
    return Audit(view, partitions=1, share=1.0, max_keys=10, max_rows=100, patience=5.0)


def emitted(view: FeatureView, record: Sent, *, off: float = 0.0, late: int = 0) -> VectorBatch:
    """The vector of the last event of a record, the first of its key, as the stream has it."""
    hops = record.hops
    assert isinstance(hops, EventHops)
    own = hops.take(np.array([len(hops) - 1]))
    before = [hops.take(np.arange(len(hops) - 1))] if len(hops) > 1 else []
    at = int(own.columns.times[0])
    found = refolded(view, "card", "c", before, at=at, own=own)
    values = [found[name][0] for name in FEATURES if name in found]
    statuses = [found[name][1] for name in FEATURES if name in found]
    return VectorBatch(
        view.definition_hash,
        view.feature_names,
        own.columns.ids,
        ["u"],
        own.columns.times + late,
        own.intakes,
        np.array([[*values, values[0] * 2]]) + off,
        np.array([[*statuses, Status.PRESENT]], np.uint8),
        own.is_scored,
        {"card": ["c"]},
        0,
        own.places,
        [None],
    )


def test_a_vector_waits_for_its_event_and_is_equal_or_reported(view: FeatureView) -> None:
    audit, record = audit_of(view), sent(1, "a", "b")
    audit.take_vectors(emitted(view, record), 0.0)
    audit.take_vectors(emitted(view, record, off=0.25), 0.0)

    assert audit.review(0.0) == ([], [])
    audit.take_hops("card", 0, 0, record)
    reports, doubts = audit.review(0.0)

    assert doubts == []
    assert [type(report) for report in reports] == [Report]
    found = {each.feature: each for each in reports[0].differences}
    assert set(found) == {"spent_1h", "spent", "twice"}
    assert (found["spent"].served.value, found["spent"].refolded.value) == (2.25, 2.0)
    assert [hop["id"] for hop in reports[0].history] == ["a", "b"]
    assert audit.waiting == 0


def test_what_cannot_be_compared_is_counted_with_its_reason(view: FeatureView) -> None:
    audit, record = audit_of(view), sent(1, "a", "b")
    other = replace(emitted(view, record), definition_hash="another")
    elsewhere = replace(emitted(view, record), ids=["never-sent"])
    audit.take_hops("card", 0, 0, record)
    for batch in (other, elsewhere, emitted(view, record, late=1)):
        audit.take_vectors(batch, 0.0)

    assert audit.review(4.9) == ([], [])
    assert audit.waiting == 1
    assert audit.review(5.0) == ([], [])
    assert audit.skipped == {Skip.DEFINITION: 1, Skip.OTHER_TIME: 1, Skip.ABSENT: 1}


def test_a_value_whose_windows_lie_before_the_log_is_not_called_equal(view: FeatureView) -> None:
    only = {"spent": view.pipeline.features["spent"]}
    view = FeatureView(view.pipeline.model_copy(update={"features": only}))
    audit, record = audit_of(view), sent(1, "a", "b")
    vectors = emitted(view, record)
    audit.lost_head("card", 0)
    audit.take_hops("card", 0, 0, record)
    audit.take_vectors(
        replace(vectors, values=vectors.values[:, :1], statuses=vectors.statuses[:, :1]), 0.0
    )

    assert audit.review(0.0) == ([], [])
    assert audit.skipped == {Skip.INCOMPLETE: 1}
    assert not audit.results
