"""Hops as records: what is read is what was written, and what is none of ours is refused whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from homeostat.common.errors import InvalidEvent
from homeostat.common.event_columns import EventColumns, event_hashes
from homeostat.common.feature_store.views import FeatureView, Vectors
from homeostat.common.pipeline import Pipeline
from homeostat.common.schemas.hops import MAX_ROWS, EventBatch
from homeostat.common.windows import Status
from homeostat.features.hops import ROWS_AT_ONCE, EventHops, HopCodec, LabelHops, by_partition

FIELDS: dict[str, Any] = {
    "id": "string",
    "card": "string",
    "amount": {"type": "float", "optional": True},
    "channel": {"type": "category", "values": ["web", "pos"]},
}


def view(**changes: Any) -> FeatureView:
    label = {"field": "bad", "maturity": "1d"}
    return FeatureView(
        Pipeline.model_validate(
            {
                "name": "payments",
                "owner": "tests",
                "source": {"id": "id", "time": "at", "key": "card", "label": label},
                "unit": "card",
                "fields": FIELDS,
                "features": {
                    "spent": {
                        "entity": "card",
                        "aggregate": "sum(amount)",
                        "window": "sliding 1h",
                    }
                },
                **changes,
            }
        )
    )


def events(count: int, *, text: str = "") -> EventHops:
    ids = [f"e{number}{text}" for number in range(count)]
    return EventHops(
        EventColumns(
            ids,
            np.arange(count) + 1_700_000_000_000,
            {"id": list(ids), "card": [f"c{number % 3}" for number in range(count)]},
            {
                "amount": np.array([row / 100 if row % 2 else np.nan for row in range(count)]),
                "channel": np.array([row % 2 for row in range(count)], np.float64),
            },
        ),
        event_hashes(ids),
        np.arange(count) + 1_700_000_000_007,
        np.arange(count) % 4 > 0,
        np.arange(count) + 90,
        Vectors(np.full((count, 1), np.nan), np.full((count, 1), 2, np.uint8)),
        [None] * count,
        is_replayed=False,
    )


def read(records: list[bytes], codec: HopCodec) -> EventHops:
    hops = [codec.decode(record, offset).hops for offset, record in enumerate(records)]
    return EventHops.joined([part for part in hops if isinstance(part, EventHops)])


def test_events_come_back_as_they_were_with_their_source_and_their_new_place() -> None:
    codec, sent = HopCodec(view()), replace(events(5), traceparents=["a", None, None, "b", None])

    (record,) = codec.encode_events(sent, 3)
    read = codec.decode(record, 11)

    assert (read.stream, read.source, read.sources.tolist()) == ("", 3, [90, 91, 92, 93, 94])
    hops = read.hops
    assert isinstance(hops, EventHops)
    assert hops.places.tolist() == [11 * MAX_ROWS + row for row in range(5)]
    assert hops.columns.ids == sent.columns.ids
    assert hops.columns.strings == sent.columns.strings
    for name, column in sent.columns.numbers.items():
        np.testing.assert_array_equal(hops.columns.numbers[name], column)
    for name in ("hashes", "intakes", "is_scored"):
        np.testing.assert_array_equal(getattr(hops, name), getattr(sent, name))
    assert hops.traceparents == ["a", None, None, "b", None]
    assert hops.aggregates.statuses.tolist() == [[Status.MISSING]] * 5


def test_values_travel_on_with_their_events() -> None:
    seen = replace(events(2), aggregates=Vectors(np.array([[1.5], [2.5]]), np.zeros((2, 1), "u1")))

    (record,) = HopCodec(view()).encode_onward(seen, 0)

    same = read([record], HopCodec(view()))
    assert same.aggregates.values.tolist() == [[1.5], [2.5]]
    assert same.aggregates.statuses.tolist() == [[Status.PRESENT]] * 2


def test_values_of_another_number_of_features_are_refused() -> None:
    hourly = {"entity": "card", "aggregate": "sum(amount)", "window": "sliding 1h"}
    codec = HopCodec(view(features={"spent": hourly, "again": {**hourly, "delay": "1h"}}))
    seen = replace(events(2), aggregates=Vectors(np.array([[1.5], [2.5]]), np.zeros((2, 1), "u1")))

    (record,) = HopCodec(view()).encode_onward(seen, 0)

    with pytest.raises(InvalidEvent, match="not a record of ours"):
        codec.decode(record, 0)


def test_categories_are_known_by_name_whatever_their_order_was() -> None:
    fields = {**FIELDS, "channel": {"type": "category", "values": ["app", "pos"]}}

    (record,) = HopCodec(view()).encode_events(events(2), 0)

    channels = read([record], HopCodec(view(fields=fields))).columns.numbers["channel"]
    np.testing.assert_array_equal(channels, [np.nan, 1.0])  # web is known no more, pos is


def test_a_field_that_is_newer_than_the_record_is_null_in_it() -> None:
    optional = {"type": "string", "optional": True}
    fields = {**FIELDS, "device": optional, "tip": {"type": "float", "optional": True}}

    (record,) = HopCodec(view()).encode_events(events(2), 0)

    columns = read([record], HopCodec(view(fields=fields))).columns
    assert columns.strings["device"] == [None, None]
    assert np.isnan(columns.numbers["tip"]).all()


@pytest.mark.parametrize(
    ("field", "kind"), [("amount", "string"), ("id", {"type": "float", "optional": True})]
)
def test_a_field_that_has_changed_between_text_and_number_is_refused(field: str, kind: Any) -> None:
    (record,) = HopCodec(view()).encode_events(events(2), 0)
    fields = {**FIELDS, field: kind, "id2": "string"}
    source = {
        "id": "id2",
        "time": "at",
        "key": "card",
        "label": {"field": "bad", "maturity": "1d"},
    }
    features = {"one": {"expression": "1"}}
    codec = HopCodec(view(fields=fields, source=source, features=features))

    with pytest.raises(InvalidEvent, match=f"field {field} was"):
        codec.decode(record, 0)


@pytest.mark.parametrize("member", ["sources", "hashes", "times", "intakes", "is_scored"])
def test_columns_of_unequal_length_are_refused(member: str) -> None:
    codec = HopCodec(view())
    (record,) = codec.encode_events(events(3), 0)
    batch = msgspec.msgpack.decode(record, type=EventBatch)
    broken = msgspec.structs.replace(batch, **{member: getattr(batch, member)[:-8] + b"\0" * 16})

    with pytest.raises(InvalidEvent, match="not a record of ours"):
        codec.decode(msgspec.msgpack.encode(broken), 0)


@pytest.mark.parametrize("value", [b"", b"{}", b"\x00", b"\x91\xa6events", b"\xff" * 40])
def test_what_is_no_batch_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidEvent, match="not a record of ours"):
        HopCodec(view()).decode(value, 0)


def test_labels_come_back_with_the_topic_that_they_came_from() -> None:
    codec, ids = HopCodec(view()), ["e1", "e2"]
    labels = LabelHops(
        ids,
        event_hashes(ids),
        {"card": ["c1", None], "device": [None, "d2"]},
        np.array([5, 6]),
        np.array([7, 8]),
        np.array([0.0, 1.0]),
        np.array([40, 44]),
        [None, "t"],
    )

    (record,) = codec.encode_labels(labels, "payments-labels", 2)
    read = codec.decode(record, 1)

    assert (read.stream, read.source, read.sources.tolist()) == ("payments-labels", 2, [40, 44])
    hops = read.hops
    assert isinstance(hops, LabelHops)
    assert (hops.ids, hops.traceparents) == (ids, [None, "t"])
    assert (hops.keys_of("card"), hops.keys_of("device")) == (["c1", None], [None, "d2"])
    assert hops.keys_of("newer") == [None, None]
    assert (hops.times.tolist(), hops.intakes.tolist()) == ([5, 6], [7, 8])
    assert (hops.labels.tolist(), hops.places.tolist()) == ([0.0, 1.0], [MAX_ROWS, MAX_ROWS + 1])


@pytest.mark.parametrize(
    ("count", "text"), [(ROWS_AT_ONCE + 1, ""), (400, "x" * 4_000), (1, "x" * 600_000)]
)
def test_what_is_too_much_for_one_record_becomes_more_of_them(count: int, text: str) -> None:
    codec, sent = HopCodec(view()), events(count, text=text)

    records = list(codec.encode_events(sent, 0))

    assert read(records, codec).columns.ids == sent.columns.ids
    assert all(len(record) <= 512_000 for record in records) or count == 1


def test_each_hop_goes_to_its_partition_in_order() -> None:
    sent = events(6)

    parts = dict(by_partition(sent, [1, 0, 1, 3, 1, 0]))

    assert {partition: part.columns.ids for partition, part in parts.items()} == {
        0: ["e1", "e5"],
        1: ["e0", "e2", "e4"],
        3: ["e3"],
    }
