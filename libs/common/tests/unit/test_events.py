"""The event contract: what is accepted, what is published, and what a sender is told."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeostat.common.errors import InvalidEvent, Reason, problem
from homeostat.common.event_columns import event_hash
from homeostat.common.events import EventContract
from homeostat.common.instants import parse_time
from homeostat.common.pipeline import Pipeline

NOW = 1_700_000_000_000


def contract(**fields: Any) -> EventContract:
    pipeline = Pipeline.model_validate(
        {
            "name": "payments",
            "owner": "tests",
            "source": {
                "id": "id",
                "time": "at",
                "key": "customer",
                "label": {"field": "bad", "maturity": "1d"},
            },
            "unit": "customer",
            "fields": {"id": "string", "customer": "string", **fields},
            "features": {"one": {"expression": "1"}},
        }
    )
    return EventContract(pipeline, pii_key=b"secret")


def body(**values: Any) -> bytes:
    return json.dumps({"id": "e1", "at": NOW, "customer": "c1"} | values).encode()


def test_an_accepted_event_is_published_as_it_was_sent() -> None:
    payments = contract(amount={"type": "decimal", "scale": 0.01}, note="string")

    event = payments.parse(body(amount=12.5, note="é"), now=NOW)

    assert (event.id, event.time, event.key, event.intake) == ("e1", NOW, "c1", NOW)
    assert json.loads(payments.encode(event)) == json.loads(body(amount=12.5, note="é"))


def test_personal_data_never_leaves_the_contract() -> None:
    payments = contract(
        card={"type": "string", "pii": "drop"}, mail={"type": "string", "pii": "hash"}
    )

    published = payments.encode(payments.parse(body(card="4711", mail="a@b.c"), now=NOW))

    assert b"4711" not in published
    assert b"a@b.c" not in published
    again = payments.encode(payments.parse(body(card="9", mail="a@b.c"), now=NOW))
    assert json.loads(published)["mail"] == json.loads(again)["mail"]


def test_every_problem_of_an_event_is_told_at_once() -> None:
    payments = contract(amount={"type": "decimal", "scale": 0.01, "minimum": 0}, count="integer")

    with pytest.raises(InvalidEvent) as refused:
        payments.parse(body(amount=-1, cuont=3), now=NOW)

    violations = {v.path: (v.message, v.fix) for v in refused.value.violations}
    assert violations["cuont"] == ("unknown field", "did you mean 'count'?")
    assert violations["count"][0] == "missing"
    assert set(violations) == {"amount", "cuont", "count"}
    assert problem(refused.value)["status"] == 422


@pytest.mark.parametrize("value", [b"", b"{", b"\xff", b"[1]", b'"x"', b"NaN"])
def test_what_cannot_be_read_is_unparsable(value: bytes) -> None:
    with pytest.raises(InvalidEvent) as refused:
        contract().parse(value, now=NOW)

    assert refused.value.reason is Reason.UNPARSABLE
    assert problem(refused.value)["status"] == 400


def test_an_event_from_the_future_is_refused_for_that_reason() -> None:
    with pytest.raises(InvalidEvent) as refused:
        contract().parse(body(at=NOW + 3_600_000), now=NOW)

    assert refused.value.reason is Reason.FUTURE


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_that_overflows_is_refused(number: str) -> None:
    text = body(amount=1).replace(b'"amount": 1', f'"amount": {number}'.encode())

    with pytest.raises(InvalidEvent):
        contract(amount="float").parse(text, now=NOW)


def test_columns_give_nan_for_null_and_codes_for_categories() -> None:
    payments = contract(
        amount={"type": "float", "optional": True},
        channel={"type": "category", "values": ["web", "pos"]},
        device={"type": "string", "optional": True},
    )
    rows = [body(amount=2, channel="pos", device="d"), body(channel="web")]
    accepted = [payments.encode(payments.parse(row, now=NOW)) for row in rows]

    columns = payments.parse_published_batch(accepted, [NOW, NOW]).columns

    assert columns.ids == ["e1", "e1"]
    assert columns.times.tolist() == [NOW, NOW]
    assert columns.strings["device"] == ["d", None]
    assert columns.numbers["channel"].tolist() == [1.0, 0.0]
    np.testing.assert_array_equal(columns.numbers["amount"], [2.0, math.nan])


def test_a_replayed_event_brings_its_intake_and_publishes_it_not() -> None:
    payments = contract()

    event = payments.parse_replayed(body(at=1_000, **{"$available_at": 1_500_000}))

    assert event.intake == 1_500_000
    assert b"available_at" not in payments.encode(event)
    with pytest.raises(InvalidEvent):
        payments.parse_replayed(body())
    with pytest.raises(InvalidEvent, match="invalid"):
        payments.parse(body(**{"$available_at": 1}), now=NOW)


@given(st.integers(min_value=100_000_000_000, max_value=253_402_300_799_999))
def test_milliseconds_and_their_text_are_the_same_instant(millis: int) -> None:
    from datetime import UTC, datetime, timedelta  # noqa: PLC0415 - local to the property

    instant = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=millis)

    assert parse_time(millis) == parse_time(instant.isoformat()) == millis


@pytest.mark.parametrize(
    "value", ["2018-04-01T00:00:31", "yesterday", float("nan"), True, -5, 10**17]
)
def test_what_is_no_time_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_time(value)


def test_the_hash_of_an_event_id_is_pinned() -> None:
    """It stands in stored rows: changing it would merge events twice."""
    assert event_hash("e1") == 292_540_415_853_092_123


@given(st.binary(max_size=200))
def test_no_bytes_make_the_contract_fail_otherwise(value: bytes) -> None:
    with pytest.raises(InvalidEvent):  # random bytes are no event, and nothing else happens
        contract(amount="float").parse(value, now=NOW)


GOOD = [body(), body(id="e2", at=NOW // 1000), body(id="e3", at="2023-11-14T22:13:20Z"), body(n=1)]
ODD = [
    b"",
    b"{",
    b"\xff",
    body() + b"\n" + body(),
    body(id="a\nb"),
    json.dumps({"id": "e4", "at": NOW, "customer": "c1"}, indent=1).encode(),
    body(id=""),
    body(id="x" * 257),
    body(at=NOW * 1000),
    body(at=-1),
    body(at=True),
    body(at=NOW + 3_600_000),
    body(customer="c\x00"),
    body(n=1e308),
    body().replace(b"c1", b'c1","n":1e999,"customer":"c2'),
    body(nonsense=1),
]


@given(st.lists(st.sampled_from([*GOOD, *ODD]), min_size=1, max_size=6))
def test_a_batch_is_read_as_each_of_its_records_would_be(values: list[bytes]) -> None:
    payments = contract(n={"type": "float", "optional": True})
    good, bad = [], []
    for row, value in enumerate(values):
        try:
            good.append((row, payments.parse_published(value, now=NOW)))
        except InvalidEvent as error:
            bad.append((row, str(error), error.reason))

    parsed = payments.parse_published_batch(values, [NOW] * len(values))

    assert parsed.rows == [row for row, _ in good]
    assert [(row, str(error), error.reason) for row, error in parsed.refused] == bad
    assert parsed.columns.ids == [event.id for _, event in good]
    assert parsed.columns.times.tolist() == [event.time for _, event in good]
    assert parsed.columns.strings["customer"] == [event.key for _, event in good]
