"""The front door against a real broker: every row is stored or refused, and its sender told."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from homeostat.cli.publishing import publish
from homeostat.cli.testing import ServiceProcess, SessionStack, running_service
from homeostat.common import kafka
from homeostat.common.pipeline import Pipeline

TOKEN = "let me replay"
NOW = time.time()


def pipeline(name: str) -> Pipeline:
    return Pipeline.model_validate(
        {
            "name": name,
            "owner": "tests",
            "source": {
                "id": "id",
                "time": "at",
                "key": "customer",
                "label": {"field": "bad", "maturity": "1d"},
            },
            "unit": "customer",
            "fields": {
                "id": "string",
                "customer": "string",
                "amount": {"type": "decimal", "scale": 0.01, "minimum": 0},
                "channel": {"type": "category", "values": ["web", "pos"]},
                "card": {"type": "string", "pii": "drop", "optional": True},
            },
            "features": {"amount_paid": {"expression": "amount"}},
        }
    )


@pytest.fixture(scope="module")
def ingest(
    stack: SessionStack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    asyncio.run(publish(pipeline("intake"), bootstrap_servers=stack.kafka))
    folder = tmp_path_factory.mktemp("ingest")
    with running_service(
        "homeostat.ingest",
        stack,
        folder,
        port_variable="INGEST_PORT",
        env={"INGEST_REPLAY_TOKEN": TOKEN},
    ) as service:
        wait_until_known(service, "intake")
        yield service


def wait_until_known(service: ServiceProcess, name: str) -> None:
    deadline = time.monotonic() + 20
    while post(service, b"{}", name=name).status_code in (404, 503):
        assert time.monotonic() < deadline, service.log.read_text()


def event(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"e{number}",
        "at": NOW,
        "customer": f"c{number % 3}",
        "amount": 12.34,
        "channel": "web",
    } | changes


def post(
    service: ServiceProcess,
    body: bytes,
    *,
    kind: str = "events",
    name: str = "intake",
    **headers: str,
) -> httpx.Response:
    return httpx.post(f"{service.url}/v1/pipelines/{name}/{kind}", content=body, headers=headers)


async def records(stack: SessionStack, topic: str) -> list[Any]:
    reader = kafka.consumer(topic, bootstrap_servers=stack.kafka, client_id="test")
    await reader.start()
    try:
        partitions = list(reader.assignment())
        ends = await reader.end_offsets(partitions)
        found: list[Any] = []
        while len(found) < sum(ends.values()):
            for batch in (await reader.getmany(timeout_ms=500)).values():
                found.extend(batch)
        return found
    finally:
        await reader.stop()


def stored(stack: SessionStack, topic: str, event_id: str) -> list[Any]:
    found = asyncio.run(records(stack, topic))
    return [record for record in found if json.loads(record.value)["id"] == event_id]


def test_an_event_is_acknowledged_with_its_place_and_stored_without_personal_data(
    ingest: ServiceProcess, stack: SessionStack
) -> None:
    answer = post(ingest, json.dumps(event(1, card="4711")).encode())

    assert answer.status_code == 202
    (record,) = stored(stack, "intake-events", "e1")
    place = answer.json()
    assert (record.partition, record.offset) == (place["partition"], place["offset"])
    assert json.loads(record.value) == event(1)
    assert record.key == b"c1"
    assert kafka.header(record.headers, kafka.TRACEPARENT) is not None


def test_each_row_of_a_batch_is_answered_for_itself(
    ingest: ServiceProcess, stack: SessionStack
) -> None:
    lines = [
        json.dumps(event(10)),
        "{broken",
        json.dumps(event(11, amuont=1)),
        json.dumps(event(12, amount=-1, channel="fax")),
        json.dumps(event(13)),
    ]

    answer = post(ingest, "\n".join(lines).encode(), **{"Content-Type": "application/x-ndjson"})

    document = answer.json()
    assert [item["status"] for item in document["items"]] == [202, 400, 422, 422, 202]
    assert (document["accepted"], document["refused"]) == (2, 3)
    misspelt = document["items"][2]["problem"]["violations"]
    assert misspelt == [
        {"path": "amuont", "message": "unknown field", "fix": "did you mean 'amount'?"}
    ]
    assert {item["path"] for item in document["items"][3]["problem"]["violations"]} == {
        "amount",
        "channel",
    }
    for accepted, item in (("e10", 0), ("e13", 4)):
        (record,) = stored(stack, "intake-events", accepted)
        assert record.offset == document["items"][item]["offset"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "UNPARSABLE"),
        (b"{broken", 400, "UNPARSABLE"),
        (json.dumps(event(20, amount=float("nan"))).encode(), 400, "UNPARSABLE"),
        (b'{"id": "e20", "amount": 1e999}', 400, "UNPARSABLE"),
        (json.dumps(event(20, amount="12")).encode(), 422, "INVALID_EVENT"),
        (json.dumps({"id": "e20"}).encode(), 422, "INVALID_EVENT"),
        (json.dumps(event(20, at=NOW + 3600)).encode(), 422, "INVALID_EVENT"),
        (json.dumps(event(20, at="2026-01-01T00:00:00")).encode(), 422, "INVALID_EVENT"),
        (json.dumps(event(20, id="x" * 300)).encode(), 422, "INVALID_EVENT"),
        (json.dumps(event(20, customer="a\nb")).encode(), 422, "INVALID_EVENT"),
        (b"[" + b"1," * 20_000 + b"1]", 422, "INVALID_INPUT"),
        (b'"' + b"x" * 6_000_000 + b'"', 413, "BODY_TOO_LARGE"),
    ],
    ids=lambda value: value[:40].decode(errors="replace") if isinstance(value, bytes) else None,
)
def test_bad_input_is_a_problem_document(
    ingest: ServiceProcess, body: bytes, status: int, code: str
) -> None:
    answer = post(ingest, body)

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert "Traceback" not in answer.text


def test_an_unknown_pipeline_names_the_nearest_one(ingest: ServiceProcess) -> None:
    answer = post(ingest, b"{}", name="intakes")

    assert answer.status_code == 404
    assert answer.json()["fix"] == "did you mean 'intake'?"


def test_only_the_replayer_may_set_the_clock(ingest: ServiceProcess, stack: SessionStack) -> None:
    old = event(30, at=1_500_000_000) | {"$available_at": 1_500_000_000_000}

    refused = post(ingest, json.dumps(old).encode())
    forged = post(ingest, json.dumps(old).encode(), **{"X-Replay-Token": "guess"})
    taken = post(ingest, json.dumps(old).encode(), **{"X-Replay-Token": TOKEN})

    assert [answer.status_code for answer in (refused, forged, taken)] == [403, 403, 202]
    (record,) = stored(stack, "intake-events", "e30")
    assert kafka.available_at(record.headers) == 1_500_000_000_000
    assert json.loads(record.value) == event(30, at=1_500_000_000)


def test_labels_are_taken_by_event_id(ingest: ServiceProcess, stack: SessionStack) -> None:
    body = b'[{"id": "e1", "label": 1}, {"id": "e1", "label": 2}, {"id": "", "label": 0}, {}]'

    answer = post(ingest, body, kind="labels")

    assert [item["status"] for item in answer.json()["items"]] == [202, 422, 422, 422]
    (record,) = stored(stack, "intake-labels", "e1")
    assert json.loads(record.value) == {"id": "e1", "label": 1.0}


def test_counters_add_up(ingest: ServiceProcess) -> None:
    post(ingest, b'[{"id": "e40", "label": 1}, {}]', kind="labels")

    totals = {"received": 0.0, "accepted": 0.0, "refused": 0.0}
    for line in httpx.get(f"{ingest.url}/metrics").text.splitlines():
        for name in totals:
            if line.startswith(f"ingest_{name}_total{{"):
                totals[name] += float(line.rpartition(" ")[2])
    assert totals["received"] == totals["accepted"] + totals["refused"] > 0


def test_without_a_broker_it_lives_and_says_what_is_missing(
    stack: SessionStack, tmp_path: Path
) -> None:
    with running_service(
        "homeostat.ingest",
        stack,
        tmp_path,
        port_variable="INGEST_PORT",
        env={"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"},
    ) as service:
        ready = httpx.get(f"{service.url}/readyz")
        answer = post(service, b"{}")

        assert (ready.status_code, answer.status_code) == (503, 503)
        assert ready.json()["checks"]["kafka"] == "the broker does not answer"
        assert "Retry-After" in answer.headers
        assert service.stop() == 0


def test_sigterm_under_load_loses_no_acknowledged_event(
    stack: SessionStack, tmp_path: Path
) -> None:
    asyncio.run(publish(pipeline("leaving"), bootstrap_servers=stack.kafka))
    with running_service(
        "homeostat.ingest", stack, tmp_path, port_variable="INGEST_PORT", env={}
    ) as service:
        wait_until_known(service, "leaving")

        statuses = asyncio.run(send_while_stopping(service))

        assert service.process.wait(25) == 0
    accepted = sum(status == 202 for status in statuses)
    assert set(statuses) == {202}
    assert len(asyncio.run(records(stack, "leaving-events"))) == accepted > 20


async def send_while_stopping(service: ServiceProcess) -> list[int]:
    """Send from several clients, each until it is asked to go elsewhere."""
    statuses: list[int] = []

    async def client(number: int) -> None:
        async with httpx.AsyncClient() as http:
            for place in range(1000):
                body = json.dumps(event(number * 1000 + place)).encode()
                answer = await http.post(f"{service.url}/v1/pipelines/leaving/events", content=body)
                statuses.append(answer.status_code)
                if len(statuses) == 20:
                    service.process.terminate()
                if answer.headers.get("connection") == "close":
                    return
        raise AssertionError("the service never asked this client to leave")

    await asyncio.gather(*map(client, range(8)))
    return statuses
