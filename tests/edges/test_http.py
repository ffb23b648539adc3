"""Bad input over HTTP and gRPC: each door names what is wrong and where, and goes on."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import httpx
import msgspec
import pytest

from homeostat.cli.stack.state import StackState
from homeostat.cli.testing import RunningSystem
from homeostat.common.http import PROBLEM
from homeostat.common.pipeline import Pipeline
from homeostat.common.proto import inference_pb2 as pb
from homeostat.common.proto import inference_pb2_grpc as pb_grpc
from tests.edges.bad_inputs import BAD_EVENTS, BAD_LABELS, DEEP, BadInput, event

Base = Callable[[str], str]

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


class Door(NamedTuple):
    """Where rows of a kind come in; a batch is answered under ``answers``, row by row."""

    service: str
    path: str
    answers: str
    accepted: int
    inputs: list[BadInput]
    good: bytes


DOORS = {
    "ingest events": Door("ingest", "/events", "items", 202, BAD_EVENTS, event()),
    "ingest labels": Door(
        "ingest", "/labels", "items", 202, BAD_LABELS, b'{"id": "e1", "label": 1}'
    ),
    "router events": Door("router", "/events", "items", 202, BAD_EVENTS, event()),
    "router predict": Door("router", "/predict", "predictions", 200, BAD_EVENTS, event()),
    "inference predict": Door("inference", "/predict", "predictions", 200, BAD_EVENTS, event()),
}
SINGLE = [(door, bad) for door in DOORS for bad in DOORS[door].inputs]


@pytest.mark.parametrize(("name", "bad"), SINGLE, ids=str)
def test_a_bad_row_by_itself_is_a_problem_document(base: Base, name: str, bad: BadInput) -> None:
    door = DOORS[name]

    answer = httpx.post(f"{base(door.service)}{door.path}", content=bad.body)

    assert_problem(answer, bad.status, bad.names)


@pytest.mark.parametrize("name", DOORS)
def test_bad_lines_are_answered_one_by_one_and_hold_up_no_good_one(base: Base, name: str) -> None:
    door = DOORS[name]
    lines = [bad for bad in door.inputs if bad.fits_a_line]
    body = b"\n".join([door.good, *(bad.body for bad in lines), door.good])

    answer = httpx.post(
        f"{base(door.service)}{door.path}",
        content=body,
        headers={"content-type": "application/x-ndjson"},
        timeout=30,
    )

    first, *refused, last = answer.json()[door.answers]
    assert answer.status_code == door.accepted
    assert "problem" not in first
    assert "problem" not in last
    assert_each(refused, lines)


@pytest.mark.parametrize("name", DOORS)
def test_bad_elements_of_an_array_are_answered_one_by_one(base: Base, name: str) -> None:
    door = DOORS[name]
    elements = [bad for bad in door.inputs if bad.fits_an_array]
    body = b"[" + b",".join([*(bad.body for bad in elements), door.good]) + b"]"

    answer = httpx.post(f"{base(door.service)}{door.path}", content=body, timeout=30)

    *refused, last = answer.json()[door.answers]
    assert answer.status_code == door.accepted
    assert "problem" not in last
    assert_each(refused, elements)


@pytest.mark.parametrize("name", DOORS)
@pytest.mark.parametrize(
    ("body", "status", "names"),
    [
        (b"", 400, "empty"),
        (b" \n ", 400, "empty"),
        (b"[1, 2", 400, "not a JSON array"),
        (b"[" + b"[" * DEEP, 400, "nested"),
        (b"[" + b"1," * 20_000 + b"1]", 422, "rows in one request"),
        (b'"' + b"x" * 17_000_000 + b'"', 413, "larger than"),
    ],
    ids=["no body", "blanks", "half an array", "endless brackets", "too many rows", "too long"],
)
def test_a_body_that_is_no_rows_is_a_problem_document(
    base: Base, name: str, body: bytes, status: int, names: str
) -> None:
    door = DOORS[name]

    answer = httpx.post(f"{base(door.service)}{door.path}", content=body, timeout=30)

    assert_problem(answer, status, names)


@pytest.mark.parametrize("name", DOORS)
def test_an_empty_array_is_answered_with_nothing(base: Base, name: str) -> None:
    door = DOORS[name]

    answer = httpx.post(f"{base(door.service)}{door.path}", content=b"[]")

    assert (answer.status_code, answer.json()[door.answers]) == (door.accepted, [])


@pytest.mark.parametrize("name", DOORS)
def test_a_thousand_unknown_fields_are_told_by_the_first_ones(base: Base, name: str) -> None:
    door = DOORS[name]
    body = json.dumps({f"{'x' * 100}{number}": 1 for number in range(1_000)}).encode()

    answer = httpx.post(f"{base(door.service)}{door.path}", content=body)

    assert answer.status_code == 422
    assert len(answer.content) < 10_000


PREDICTED = [
    ("an unknown entity", {"entities": {"custmer_id": "c1"}}, "did you mean 'customer_id'?"),
    ("no entity", {"entities": {}}, "customer_id"),
    ("an entity key that is a number", {"entities": {"customer_id": 5}}, "entities"),
    ("an empty entity key", {"entities": {"customer_id": ""}}, "entities.customer_id"),
    ("NUL in an entity key", {"entities": {"customer_id": "a\0"}}, "entities.customer_id"),
    (
        "an entity key of a hundred thousand characters",
        {"entities": {"customer_id": "x" * 100_000}},
        "entities.customer_id",
    ),
    ("entities that are a list", {"entities": ["c1"]}, "entities"),
    ("a vector too short", {"vector": [1, 2]}, "amount_paid"),
    ("a vector of text", {"vector": ["a"]}, "vector"),
    ("an unknown feature", {"vector": {"amount_payed": 1}}, "did you mean 'amount_paid'?"),
]


@pytest.mark.parametrize("service", ["router", "inference"])
@pytest.mark.parametrize(
    ("body", "names"), [row[1:] for row in PREDICTED], ids=[row[0] for row in PREDICTED]
)
def test_keys_and_vectors_that_cannot_be_used_are_told_by_place(
    base: Base, service: str, body: dict[str, Any], names: str
) -> None:
    answer = httpx.post(f"{base(service)}/predict", json=body)

    assert_problem(answer, 422, names)


@pytest.mark.parametrize("unit", ["", "a\0", "x" * 100_000], ids=["empty", "NUL", "long"])
def test_a_unit_that_no_event_could_have_is_refused(base: Base, unit: str) -> None:
    body = {"entities": {"customer_id": "c1"}, "unit": unit}

    answer = httpx.post(f"{base('router')}/predict", json=body)

    assert_problem(answer, 422, "unit")


def test_only_a_replay_may_set_the_clock_of_a_prediction(base: Base) -> None:
    body = {"entities": {"customer_id": "c1"}, "$available_at": 1}

    answer = httpx.post(f"{base('router')}/predict", json=body)

    assert_problem(answer, 403, "X-Replay-Token".lower())


UNKNOWN = [
    ("ingest", "POST", "/events"),
    ("ingest", "POST", "/labels"),
    ("router", "POST", "/predict"),
    ("router", "POST", "/events"),
    ("router", "GET", "/rollout"),
    ("inference", "POST", "/predict"),
    ("inference", "GET", "/models"),
    ("trainer", "POST", "/runs"),
    ("trainer", "GET", "/versions"),
    ("judge", "POST", "/rollout/abort"),
    ("judge", "GET", "/rollout/decisions"),
    ("features", "GET", "/progress"),
    ("features", "POST", "/offline/commit"),
    ("features", "POST", "/features/read"),
    ("drift", "GET", "/alerts"),
]


@pytest.mark.parametrize(("service", "method", "path"), UNKNOWN, ids=str)
def test_an_unknown_pipeline_names_the_nearest_one(
    base: Base, service: str, method: str, path: str
) -> None:
    address = base(service).replace("edges", "edgs")

    answer = httpx.request(method, f"{address}{path}")

    assert_problem(answer, 404, "did you mean 'edges'?")


ORDERS: list[tuple[str, str, str, bytes, int, str]] = [
    ("trainer", "POST", "/runs", b'{"cause": ', 400, "not JSON"),
    ("trainer", "POST", "/runs", b"[" * DEEP, 400, "JSON"),
    ("trainer", "POST", "/runs", b"\xff", 400, "JSON"),
    ("trainer", "POST", "/runs", b'{"cuase": "x"}', 422, "cuase"),
    ("trainer", "POST", "/runs", b'{"cause": 5}', 422, "cause"),
    ("trainer", "POST", "/runs", b'{"cause": ""}', 422, "cause"),
    ("trainer", "POST", "/runs", b'{"cause": "a\\u0000b"}', 422, "cause"),
    ("trainer", "POST", "/runs", b'{"cause": "\\ud800"}', 422, "cause"),
    ("trainer", "POST", "/runs", b'{"cause": "%s"}' % (b"x" * 501), 422, "cause"),
    ("trainer", "GET", "/runs?limit=many", b"", 422, "limit"),
    ("trainer", "GET", "/runs/nobody", b"", 404, "nobody"),
    ("trainer", "GET", "/runs/a%00b", b"", 422, "run_id"),
    ("trainer", "POST", "/versions/one/approve", b'{"by": "me"}', 422, "version"),
    ("trainer", "POST", "/versions/9/approve", b'{"by": "me"}', 404, "no version 9"),
    ("trainer", "POST", f"/versions/{2**70}/approve", b'{"by": "me"}', 422, "version"),
    ("trainer", "POST", "/versions/-1/approve", b'{"by": "me"}', 422, "version"),
    ("trainer", "POST", "/versions/1/approve", b"{}", 422, "by"),
    ("trainer", "POST", "/versions/1/approve", b'{"by": "a\\u0000"}', 422, "by"),
    ("trainer", "GET", "/run", b"", 404, "Not Found"),
    ("trainer", "DELETE", "/runs", b"", 405, "Method Not Allowed"),
    ("judge", "POST", "/rollout/abort", b'{"by": ', 400, "not JSON"),
    ("judge", "POST", "/rollout/abort", b"[" * DEEP, 400, "JSON"),
    ("judge", "POST", "/rollout/explode", b"{}", 422, "action"),
    ("judge", "POST", "/rollout/abort", b'{"why": "x"}', 422, "why"),
    ("judge", "POST", "/rollout/abort", b'{"by": "a\\u0000"}', 422, "by"),
    ("judge", "POST", "/rollout/abort", b'{"reason": "a\\u0000"}', 422, "reason"),
    ("judge", "POST", "/rollout/start", b'{"version": 999}', 404, "no version 999"),
    ("judge", "POST", "/rollout/abort", b'{"generation": %d}' % 2**70, 409, "generation"),
    ("judge", "GET", "/rollout/decisions?limit=0", b"", 422, "limit"),
    ("judge", "GET", f"/rollout/decisions?limit={10**30}", b"", 422, "limit"),
]


@pytest.mark.parametrize(
    ("service", "method", "path", "body", "status", "names"),
    ORDERS,
    ids=lambda value: value[:40].decode(errors="replace") if isinstance(value, bytes) else None,
)
def test_an_order_that_cannot_be_followed_is_a_problem_document(
    base: Base, service: str, method: str, path: str, body: bytes, status: int, names: str
) -> None:
    answer = httpx.request(
        method,
        f"{base(service)}{path}",
        content=body,
        headers={"content-type": "application/json"} if body else {},
    )

    assert_problem(answer, status, names)


def test_bad_rows_over_grpc_are_answered_one_by_one(
    system: RunningSystem, serving: Pipeline
) -> None:
    rows = [
        pb.ScoreRow(prediction_id="good", unit="c1", event=event()),
        *(pb.ScoreRow(prediction_id=bad.title, unit="c1", event=bad.body) for bad in BAD_EVENTS),
        pb.ScoreRow(prediction_id="nothing", unit="c1"),
        pb.ScoreRow(prediction_id="x" * 300, unit="c1", event=event()),
        pb.ScoreRow(prediction_id="unit", unit="x" * 5_000, event=event()),
        pb.ScoreRow(prediction_id="clock", unit="c1", event=event(), available_at=2**62),
    ]

    answers = score(system, pb.ScoreBatchRequest(pipeline=serving.name, rows=rows))

    good, *refused = answers.rows
    refused, others = refused[: len(BAD_EVENTS)], refused[len(BAD_EVENTS) :]
    assert good.status == 200
    assert_each(
        [{"status": row.status, "problem": msgspec.json.decode(row.problem)} for row in refused],
        BAD_EVENTS,
    )
    assert [row.status for row in others] == [422] * 4


@pytest.mark.usefixtures("serving")
def test_an_unknown_pipeline_over_grpc_names_the_nearest_one(system: RunningSystem) -> None:
    request = pb.ScoreBatchRequest(pipeline="edgs", rows=[pb.ScoreRow(event=event())])

    (row,) = score(system, request).rows

    assert (row.status, b"did you mean 'edges'?" in row.problem) == (404, True)


def score(system: RunningSystem, request: pb.ScoreBatchRequest) -> pb.ScoreBatchResponse:
    state = StackState.read(system.home)
    assert state is not None
    (port,) = (
        process.ports["inference-grpc"]
        for process in state.processes
        if process.name == "inference"
    )
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = pb_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]  # generated
        answer: pb.ScoreBatchResponse = stub.ScoreBatch(request, timeout=10)
        return answer


def assert_each(answers: list[dict[str, Any]], wanted: list[BadInput]) -> None:
    told = {
        str(bad): (answer["status"], bad.names in json.dumps(answer["problem"], ensure_ascii=False))
        for bad, answer in zip(wanted, answers, strict=True)
    }
    assert told == {str(bad): (bad.status, True) for bad in wanted}


def assert_problem(answer: httpx.Response, status: int, names: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    document = answer.json()
    assert document.keys() >= {"type", "title", "status", "code", "detail"}
    assert names in json.dumps(document, ensure_ascii=False)
