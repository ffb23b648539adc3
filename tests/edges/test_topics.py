"""Bad records put straight on the topics: dead letters with reasons, and books that add up."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord
from prometheus_client.parser import text_string_to_metric_families

from homeostat.cli.publishing import publish
from homeostat.cli.replay.drain import Drain
from homeostat.cli.testing import RunningSystem
from homeostat.common import kafka, topics
from homeostat.common.pipeline import Pipeline, load
from tests.edges.bad_inputs import BAD_EVENTS, BAD_LABELS, event

PAYMENTS = Path(__file__).parents[1] / "e2e" / "payments.yaml"
NAME = "dirty"
WAIT_SECONDS = 60

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


class Sent(NamedTuple):
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    key: bytes | None = b"c1"


def good(now: float) -> list[Sent]:
    return [
        Sent(event(transaction_id="on time", event_time=now)),
        Sent(event(transaction_id="old, not too late", event_time=now - 600)),
        *(
            Sent(event(transaction_id=str(headers), event_time=now), headers)
            for headers in FOREIGN_HEADERS
        ),
        Sent(event(transaction_id="a key that is no text", event_time=now), key=b"\xff"),
    ]


def duplicates(now: float) -> list[Sent]:
    return good(now)[:2]


def too_late(now: float) -> list[Sent]:
    return [Sent(event(transaction_id="too late", event_time=now - 86_400))]


FOREIGN_HEADERS = [
    [("source", b"mobile:app")],
    [("available_at", b"yesterday")],
    [("available_at", b"9" * 18)],  # beyond the calendar
    [("traceparent", b"\xff\xfe")],
    [("source_topic", b"\xff")],
]
HUGE = [
    Sent(b" " * 1_010_000),
    Sent(b"x" * 20_000_000),  # the broker counts what is left of it when compressed
    Sent(b"{}", [("baggage", b"x" * 900_000)]),
    Sent(b"{}", key=b"k" * 900_000),
]
DEAD = [Sent(bad.body) for bad in BAD_EVENTS] + [Sent(None), Sent(b"")] + HUGE


def events(now: float) -> list[Sent]:
    return [*good(now), *duplicates(now), *too_late(now), *DEAD]


EVENTS = len(events(0)) + 1  # the last one comes through the front door
LABELS = [Sent(bad.body) for bad in BAD_LABELS]
GOOD_LABEL = Sent(b'{"id": "on time", "label": 1}')


@pytest.fixture(scope="module")
def dirty(system: RunningSystem) -> Pipeline:
    """A pipeline of which every topic from outside has got everything bad, and come to rest."""
    pipeline = load(PAYMENTS).model_copy(update={"name": NAME})
    asyncio.run(spoil(system, pipeline))
    return pipeline


async def spoil(system: RunningSystem, pipeline: Pipeline) -> None:
    await publish(pipeline, bootstrap_servers=system.addresses.kafka)
    async with producer(system) as broker:
        # One partition, so that the order says which of the duplicates comes first.
        for sent in events(round(time.time(), 3)):
            await put(broker, topics.EVENTS.of(NAME), sent)
        for sent in [*LABELS, GOOD_LABEL]:
            await put(broker, topics.LABELS.of(NAME), sent)
    await send_last(system)
    services = {"features": system.url("features")}
    async with Drain(NAME, bootstrap_servers=system.addresses.kafka, services=services) as drain:
        await drain.wait()


async def send_last(system: RunningSystem) -> None:
    """A good event after everything bad, once ingest knows the pipeline."""
    address = system.url("ingest", f"/v1/pipelines/{NAME}/events")
    body = event(transaction_id="last", event_time=round(time.time(), 3))
    async with httpx.AsyncClient() as http, asyncio.timeout(WAIT_SECONDS):
        while True:
            if (await http.post(address, content=body)).status_code == 202:
                return
            await asyncio.sleep(0.1)


@asynccontextmanager
async def producer(system: RunningSystem) -> AsyncIterator[AIOKafkaProducer]:
    started = kafka.producer(
        system.addresses.kafka,
        client_id="somebody",
        compression_type="gzip",
        max_request_size=30_000_000,
    )
    await started.start()
    try:
        yield started
    finally:
        await started.stop()


async def put(broker: AIOKafkaProducer, topic: str, sent: Sent) -> None:
    await broker.send_and_wait(topic, sent.value, sent.key, partition=0, headers=list(sent.headers))


@pytest.mark.usefixtures("dirty")
def test_every_record_is_counted_once_by_what_became_of_it(
    system: RunningSystem,
) -> None:
    fates = asyncio.run(books(system))

    assert fates["received"] == EVENTS
    assert fates["dead"] == len(DEAD)
    assert fates["duplicate"] == len(duplicates(0))
    assert fates["too_late"] == len(too_late(0))
    assert fates["on_time"] + fates["late_merged"] == len(good(0)) + 1
    assert fates["labels"] == len(LABELS) + 1
    assert fates["labels_dead"] == len(LABELS)
    assert fates["labels_joined"] + fates["labels_parked"] == 1  # whichever was read first


@pytest.mark.usefixtures("dirty")
def test_every_bad_record_is_a_dead_letter_with_its_place_and_reason(
    system: RunningSystem,
) -> None:
    letters = asyncio.run(records(system, topics.DEAD_LETTERS.of(NAME)))

    named = {(header(letter, "topic"), int(header(letter, "offset"))): letter for letter in letters}
    assert len(named) == len(letters) == len(DEAD) + len(LABELS)
    first = len(events(0)) - len(DEAD)
    for topic, begin, bads in (
        (topics.EVENTS.of(NAME), first, BAD_EVENTS),
        (topics.LABELS.of(NAME), 0, BAD_LABELS),
    ):
        told = {str(bad): named[topic, begin + row] for row, bad in enumerate(bads)}
        assert {title: (letter.value, reason(letter)) for title, letter in told.items()} == {
            str(bad): (bad.body, bad.reason.value) for bad in bads
        }
        for bad in bads:
            assert bad.names in header(told[str(bad)], "message")


@pytest.mark.usefixtures("dirty")
def test_nothing_had_to_be_started_again(system: RunningSystem) -> None:
    restarts = samples(system, "features_worker_restarts_total")

    assert [value for labels, value in restarts if labels["pipeline"] == NAME] == [0]
    committed = system.post("features", f"/v1/pipelines/{NAME}/offline/commit")
    assert committed["rows"]["events"] >= EVENTS


@pytest.mark.usefixtures("dirty")
async def test_nothing_is_left_behind(system: RunningSystem) -> None:
    """In the end: a worker tells its lag twice a second, and entities follow one another."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            left = lags(system)
            if set(left.values()) == {0}:
                break
            await asyncio.sleep(0.1)

    assert topics.EVENTS.of(NAME) in {topic for topic, _ in left}


def lags(system: RunningSystem) -> dict[tuple[str, str], float]:
    return {
        (labels["topic"], labels["partition"]): value
        for labels, value in samples(system, "kafka_consumer_lag_records")
        if labels["group"].startswith(f"features-{NAME}-")
    }


async def books(system: RunningSystem) -> Counter[str]:
    """What became of the records, once all of them are committed."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            fates: Counter[str] = Counter()
            for labels, value in samples(system, "features_records_total"):
                if labels["pipeline"] == NAME:
                    fates[labels["fate"]] += int(value)
            ends = ("dead", "duplicate", "too_late", "on_time", "late_merged")
            ended = sum(fates[end] for end in ends)
            if (ended, fates["labels"]) == (EVENTS, len(LABELS) + 1):
                return fates
            await asyncio.sleep(0.1)


def samples(system: RunningSystem, name: str) -> list[tuple[dict[str, str], float]]:
    text = httpx.get(system.url("features", "/metrics")).text
    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]


async def records(system: RunningSystem, topic: str) -> list[ConsumerRecord]:
    reader = kafka.consumer(topic, bootstrap_servers=system.addresses.kafka, client_id="test")
    await reader.start()
    try:
        ends = await reader.end_offsets(list(reader.assignment()))
        found: list[ConsumerRecord] = []
        while len(found) < sum(ends.values()):
            for batch in (await reader.getmany(timeout_ms=500)).values():
                found.extend(batch)
        return found
    finally:
        await reader.stop()


def header(letter: ConsumerRecord, name: str) -> str:
    found = kafka.header(letter.headers, f"__streams.errors.{name}")
    assert found is not None
    return found


def reason(letter: ConsumerRecord) -> str | None:
    return kafka.header(letter.headers, "errors.reason")
