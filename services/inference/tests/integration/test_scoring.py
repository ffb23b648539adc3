"""Announced, loaded, scored: over gRPC and REST, by event, entity keys and vector."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from homeostat.common.pipeline import Pipeline
from homeostat.common.proto import inference_pb2 as pb
from homeostat.common.windows import Status

pytestmark = pytest.mark.integration

NOW = math.floor(time.time())


def event(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"e{number}",
        "at": NOW - 600 + number,
        "customer": "alice",
        "terminal": "t1",
        "amount": 10.0 * number,
    } | changes


@pytest.fixture(scope="module")
def pipeline(
    server: Any, world: Any, workshop: Any, make_pipeline: Callable[..., Pipeline]
) -> Pipeline:
    """A served pipeline whose champion is version 1, with three events of alice in the store."""
    made = make_pipeline("scoring")
    world.publish(made)
    world.announce(workshop.train(made, 1))
    world.decide(made.name, 1)
    world.fold(made, [event(1), event(2), event(3, terminal="t2")])
    server.wait_for_champion(made.name, 1)
    return made


async def test_an_event_is_scored_on_the_state_of_its_entities_with_itself_merged_once(
    pipeline: Pipeline, workshop: Any, score_batch: Callable[..., Any]
) -> None:
    new = event(4)
    arrived = event(3, terminal="t2")

    answer = await score_batch(
        pipeline.name,
        pb.ScoreRow(prediction_id="p1", unit="alice", event=json.dumps(new).encode()),
        pb.ScoreRow(prediction_id="p2", unit="alice", event=json.dumps(arrived).encode()),
    )

    assert (answer.version, answer.threshold) == (1, 0.5)
    first, second = answer.rows
    assert (first.status, second.status) == (200, 200), first.problem
    assert list(first.values) == [40.0, 25.0, 4.0, 3.0]  # 10, 20, 30 and 40; t1 has seen 1, 2, 4
    assert list(second.values) == [30.0, 20.0, 3.0, 1.0]  # in the store already: not counted twice
    expected = workshop.train(pipeline, 1).expected([list(first.values), list(second.values)])
    assert [first.score, second.score] == expected.tolist()
    assert first.statuses == bytes([Status.PRESENT] * 4)
    assert not first.is_degraded


async def test_entity_keys_are_read_as_of_now_and_an_unknown_one_is_missing(
    pipeline: Pipeline, score_batch: Callable[..., Any]
) -> None:
    answer = await score_batch(
        pipeline.name,
        pb.ScoreRow(
            prediction_id="p1",
            entities=pb.EntityKeys(keys={"customer": "alice", "terminal": "nowhere"}),
        ),
    )

    (row,) = answer.rows
    assert row.status == 200
    assert list(row.values)[1:3] == [20.0, 3.0]
    assert math.isnan(row.values[0])
    assert row.statuses == bytes([Status.NULL, Status.PRESENT, Status.PRESENT, Status.MISSING])


def test_a_status_that_the_file_refuses_is_answered_with_its_feature(
    server: Any, world: Any, workshop: Any, make_pipeline: Callable[..., Pipeline]
) -> None:
    features = make_pipeline("strict").model_dump(mode="json", by_alias=True)["features"]
    features["customer_mean_1h"]["refuse"] = ["missing", "stale"]
    made = make_pipeline("strict", features=features)
    world.publish(made)
    world.announce(workshop.train(made, 1))
    world.decide(made.name, 1)
    world.fold(made, [event(1)])
    server.wait_for_champion(made.name, 1)

    known, new = (
        server.predict(made.name, json.dumps({"entities": {"customer": customer}}).encode())
        for customer in ("alice", "bob")
    )
    world.progress(made, age_millis=3_600_000)
    late = server.predict(made.name, b'{"entities": {"customer": "alice"}}')

    assert [answer.status_code for answer in (known, new, late)] == [200, 503, 503]
    assert new.json()["code"] == "FEATURES_REFUSED"
    assert new.json()["violations"] == [
        {"path": "features.customer_mean_1h", "message": "is missing"}
    ]
    assert late.json()["violations"][0]["message"] == "is stale"


async def test_one_bad_row_of_a_batch_fails_alone(
    pipeline: Pipeline, score_batch: Callable[..., Any]
) -> None:
    answer = await score_batch(
        pipeline.name,
        pb.ScoreRow(prediction_id="good", vector=pb.Vector(values=[1, 2, 3, math.nan])),
        pb.ScoreRow(prediction_id="short", vector=pb.Vector(values=[1, 2])),
        pb.ScoreRow(prediction_id="infinite", vector=pb.Vector(values=[1, 2, math.inf, 3])),
        pb.ScoreRow(prediction_id="invalid", event=b'{"id": "x", "at": 1, "amuont": 3}'),
        pb.ScoreRow(prediction_id="unknown", entities=pb.EntityKeys(keys={"shop": "s"})),
        pb.ScoreRow(prediction_id="nothing"),
        pb.ScoreRow(prediction_id="late", vector=pb.Vector(values=[1, 2, 3, 4]), timeout_ms=-1),
    )

    assert [(row.prediction_id, row.status) for row in answer.rows] == [
        ("good", 200),
        ("short", 422),
        ("infinite", 422),
        ("invalid", 422),
        ("unknown", 422),
        ("nothing", 422),
        ("late", 504),
    ]
    assert all("Traceback" not in row.problem.decode() for row in answer.rows)
    invalid = json.loads(answer.rows[3].problem)
    assert {"path": "amuont", "message": "unknown field", "fix": "did you mean 'amount'?"} in (
        invalid["violations"]
    )


async def test_an_unknown_pipeline_or_version_is_told_with_what_there_is(
    pipeline: Pipeline, score_batch: Callable[..., Any]
) -> None:
    row = pb.ScoreRow(prediction_id="p", vector=pb.Vector(values=[1, 2, 3, 4]))

    (misspelt,) = (await score_batch("scorign", row)).rows
    (unknown,) = (await score_batch(pipeline.name, row, version=99)).rows

    assert misspelt.status == 404
    assert json.loads(misspelt.problem)["fix"] == "did you mean 'scoring'?"
    assert unknown.status == 404
    assert json.loads(unknown.problem)["fix"] == "answering are 1"


def test_rest_answers_the_contract_of_predict(
    pipeline: Pipeline, server: Any, workshop: Any
) -> None:
    answer = server.predict(pipeline.name, json.dumps(event(4)).encode())

    document = answer.json()
    assert answer.status_code == 200
    values = [feature["value"] for feature in document["features"].values()]
    assert document == {
        "prediction_id": document["prediction_id"],
        "score": workshop.train(pipeline, 1).expected([values])[0],
        "decision": document["score"] >= 0.5,
        "threshold": 0.5,
        "model": {"name": "scoring", "version": 1, "variant": "champion"},
        "features": {
            "amount_now": {"value": 40.0, "status": "present"},
            "customer_mean_1h": {"value": 25.0, "status": "present"},
            "customer_count_1h": {"value": 4.0, "status": "present"},
            "terminal_count_1h": {"value": 3.0, "status": "present"},
        },
        "degraded": False,
    }


def test_rest_takes_an_array_or_lines_of_every_kind_of_row(pipeline: Pipeline, server: Any) -> None:
    named = dict.fromkeys(["amount_now", "customer_mean_1h", "terminal_count_1h"], 1.5)
    rows = [
        json.dumps(event(4)),
        json.dumps({"entities": {"customer": "alice", "terminal": "t1"}}),
        json.dumps({"vector": [1, 2.5, None, 4]}),
        json.dumps({"vector": named | {"customer_count_1h": None}}),
        json.dumps({"vector": named | {"customer_cuont_1h": None}}),
        json.dumps({"vector": [1, "2", 3, 4]}),
        json.dumps(event(5, amount=-1)),
    ]

    array = server.predict(pipeline.name, f"[{','.join(rows)}]".encode()).json()["predictions"]
    lines = server.predict(pipeline.name, "\n".join(rows).encode()).json()["predictions"]

    def outcome(item: dict[str, Any]) -> Any:
        return item.get("status") or item["score"]

    assert [outcome(item) for item in array] == [outcome(item) for item in lines]
    assert ["problem" in item for item in array] == [False] * 4 + [True] * 3
    fixes = [item["fix"] for item in array[4]["problem"]["violations"] if "fix" in item]
    assert fixes == ["did you mean 'customer_count_1h'?"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'"text"', 400),
        (b'{"vector": [1, 2, NaN, 4]}', 400),
        (b'{"vector": [1, 2, 1e400, 4]}', 422),
        (b'{"vector": [1, 2, 3]}', 422),
        (b'{"vector": [1, 2, 1e300, 4]}', 422),
        (b'{"vector": "many"}', 422),
        (b'{"entities": {}}', 422),
        (b'{"entities": {"customer": 7}}', 422),
        (b'{"entities": {"custmer": "alice"}}', 422),
        (b"{}", 422),
    ],
)
def test_a_bad_request_is_a_problem_document(
    pipeline: Pipeline, server: Any, body: bytes, status: int
) -> None:
    answer = server.predict(pipeline.name, body)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]
    assert "Traceback" not in answer.text


def test_every_score_of_the_request_path_is_one_ledger_row(
    world: Any, server: Any, workshop: Any, make_pipeline: Callable[..., Pipeline]
) -> None:
    pipeline = make_pipeline("ledgered")
    world.publish(pipeline)
    world.announce(workshop.train(pipeline, 1))
    world.decide(pipeline.name, 1)
    world.progress(pipeline)
    server.wait_for_champion(pipeline.name, 1)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    answers = [
        server.predict(
            pipeline.name, json.dumps(event(n, customer=f"c{n}")).encode(), traceparent=trace
        ).json()
        for n in range(30)
    ]

    ledger = world.ledger(pipeline.name, rows=30)
    by_id = dict(zip(ledger.strings("prediction_id"), ledger.numbers("score"), strict=True))
    assert by_id == {answer["prediction_id"]: answer["score"] for answer in answers}
    assert sorted(ledger.strings("event_id")) == sorted(f"e{n}" for n in range(30))
    assert set(ledger.strings("path")) == {"request"}
    assert all(ledger.batch.column("is_primary").to_pylist())
    assert {text[:35] for text in ledger.strings("traceparent")} == {trace[:35]}
    assert np.all(ledger.numbers("version") == 1)
