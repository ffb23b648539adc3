"""The contract that every edge reads events by, against every bad event."""

import time
from pathlib import Path

import pytest

from homeostat.common.errors import InvalidEvent, problem
from homeostat.common.events import EventContract
from homeostat.common.pipeline import load
from homeostat.common.schemas.labels import Label, read_label
from tests.edges.bad_inputs import BAD_EVENTS, BAD_LABELS, GOOD, BadInput, event

PIPELINE = Path(__file__).parents[1] / "e2e" / "payments.yaml"


@pytest.fixture(scope="module")
def contract() -> EventContract:
    return EventContract(load(PIPELINE))


@pytest.mark.parametrize("bad", BAD_EVENTS, ids=str)
@pytest.mark.parametrize("way", ["parse", "parse_published"])
def test_a_bad_event_is_refused_with_its_reason_and_place(
    contract: EventContract, bad: BadInput, way: str
) -> None:
    with pytest.raises(InvalidEvent) as refusal:
        getattr(contract, way)(bad.body, now=now())

    assert refusal.value.reason is bad.reason
    assert bad.names in str(refusal.value)
    assert problem(refusal.value)["status"] == bad.status


def test_the_good_event_that_the_bad_ones_are_made_of_is_taken(contract: EventContract) -> None:
    assert contract.parse(event(), now=now()).id == GOOD["transaction_id"]


def test_of_a_member_written_twice_the_last_counts(contract: EventContract) -> None:
    twice = event()[:-1] + b', "transaction_id": "last"}'

    assert contract.parse(twice, now=now()).id == "last"


@pytest.mark.parametrize("bad", BAD_LABELS, ids=str)
def test_a_bad_label_is_refused_with_its_reason_and_place(bad: BadInput) -> None:
    with pytest.raises(InvalidEvent) as refusal:
        read_label(bad.body)

    assert refusal.value.reason is bad.reason
    assert bad.names in str(refusal.value)


def test_a_good_label_is_taken() -> None:
    assert read_label(b'{"id": "e1", "label": 1}') == Label("e1", 1.0)


def now() -> int:
    return round(time.time() * 1000)
