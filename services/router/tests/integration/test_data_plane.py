"""The router as callers meet it: who answers, and what happens when something fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from homeostat.cli.testing import SessionStack
from homeostat.common import kafka, topics
from homeostat.common.assignment import Variant
from homeostat.common.pipeline import Pipeline
from homeostat.common.schemas.exposures import Exposure
from homeostat.common.schemas.rollouts import Phase, RolloutSnapshot, Trip

pytestmark = [pytest.mark.integration, pytest.mark.timeout(550)]
WAIT_SECONDS = 30
MakePipeline = Callable[..., Pipeline]


def order(unit: str, **members: Any) -> dict[str, Any]:
    return {
        "order_id": "order-1",
        "ordered_at": "2026-01-01T00:00:00Z",
        "customer_id": unit,
        "amount": 12.5,
        **members,
    }


def follows(router: Any, snapshot: RolloutSnapshot) -> None:
    """Wait until the router stands on ``snapshot``."""
    router.until(
        f"/v1/pipelines/{snapshot.pipeline}/rollout",
        lambda answer: (
            answer.status_code == 200 and answer.json()["generation"] == snapshot.generation
        ),
    )


def predict(router: Any, pipeline: str, document: Any, **headers: str) -> httpx.Response:
    return httpx.post(
        f"{router.url}/v1/pipelines/{pipeline}/predict", json=document, headers=headers, timeout=10
    )


async def first(
    stack: SessionStack, topic: str, kind: type[Any], count: int, *, of: str | None = None
) -> list[Any]:
    """The first ``count`` records of a topic, of one pipeline if it is named."""
    found: list[Any] = []
    reader = kafka.consumer(topic, bootstrap_servers=stack.kafka, client_id="tests")
    await reader.start()
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            async for record in reader:
                item = msgspec.json.decode(record.value, type=kind)
                if of is None or item.pipeline == of:
                    found.append(item)
                if len(found) == count:
                    break
    finally:
        await reader.stop()
    return found


async def test_prediction_tells_score_decision_features_and_who_answered(
    stack: SessionStack, board: Any, models: Any, router: Any, make_pipeline: MakePipeline
) -> None:
    pipeline = make_pipeline()
    await board.pipeline(pipeline)
    follows(
        router,
        await board.rollout(pipeline.name, champion=60, challenger=None, phase=Phase.CHAMPION),
    )

    answer = predict(router, pipeline.name, order("c-1"))

    body = answer.json()
    prediction_id = body.pop("prediction_id")
    assert answer.status_code == 200
    assert body == {
        "score": 0.6,
        "decision": True,
        "threshold": 0.5,
        "model": {"name": pipeline.name, "version": 60, "variant": "champion"},
        "features": {
            "orders_1h": {"value": 1.0, "status": "present"},
            "amount_mean_1h": {"value": None, "status": "null"},
        },
        "degraded": False,
    }
    (row,) = [row for row in models.seen if row.prediction_id == prediction_id]
    assert row.unit == "c-1"
    (exposure,) = await first(stack, topics.EXPOSURES.of(pipeline.name), Exposure, 1)
    assert (exposure.prediction_id, exposure.assigned, exposure.served, exposure.version) == (
        prediction_id,
        Variant.CHAMPION,
        Variant.CHAMPION,
        60,
    )


@pytest.mark.parametrize(
    "behaviour", ["ERRS", "HANGS", "NOT_A_NUMBER", "OUT_OF_RANGE", "WRONG_SHAPE"]
)
async def test_failing_challenger_costs_no_caller_an_error_and_is_off_within_20_requests(
    stack: SessionStack,
    board: Any,
    models: Any,
    router: Any,
    make_pipeline: MakePipeline,
    behaviour: str,
) -> None:
    pipeline = make_pipeline()
    challenger = 20 + len(models.behaviours)
    models.misbehave(challenger, behaviour)
    await board.pipeline(pipeline)
    snapshot = await board.rollout(pipeline.name, challenger=challenger, share=1.0)
    follows(router, snapshot)

    answers = [predict(router, pipeline.name, order(f"c-{number}")) for number in range(30)]

    assert [answer.status_code for answer in answers] == [200] * 30
    assert {answer.json()["model"]["version"] for answer in answers} == {1}
    assert models.rows[challenger, "challenger"] <= 20
    (trip,) = await first(stack, topics.ROLLOUT_TRIPS.of(), Trip, 1, of=pipeline.name)
    assert (trip.rollout, trip.version) == (snapshot.rollout, challenger)


async def test_trip_holds_until_a_snapshot_lists_it_as_seen(
    stack: SessionStack, board: Any, models: Any, router: Any, make_pipeline: MakePipeline
) -> None:
    pipeline = make_pipeline()
    models.misbehave(90, "ERRS")
    await board.pipeline(pipeline)
    follows(router, await board.rollout(pipeline.name, challenger=90, share=1.0))
    for number in range(10):
        predict(router, pipeline.name, order(f"c-{number}"))
    asked = models.rows[90, "challenger"]
    models.misbehave(90, "FINE")

    follows(router, await board.rollout(pipeline.name, challenger=90, share=1.0, generation=2))
    while_unseen = predict(router, pipeline.name, order("c-1")).json()["model"]["variant"]
    (trip,) = await first(stack, topics.ROLLOUT_TRIPS.of(), Trip, 1, of=pipeline.name)
    seen = await board.rollout(
        pipeline.name, challenger=90, share=1.0, generation=3, seen_trips=(trip.key,)
    )
    follows(router, seen)
    once_seen = predict(router, pipeline.name, order("c-1")).json()["model"]["variant"]

    assert asked <= 20
    assert (while_unseen, once_seen) == ("champion", "challenger")


async def test_trip_of_another_router_is_honoured(
    board: Any, router: Any, make_pipeline: MakePipeline
) -> None:
    pipeline = make_pipeline()
    await board.pipeline(pipeline)
    snapshot = await board.rollout(pipeline.name, challenger=2, share=1.0)
    follows(router, snapshot)
    trip = Trip(pipeline.name, snapshot.rollout, 2, "late", 1, "another-router")

    await board.send(topics.ROLLOUT_TRIPS.of(), pipeline.name, msgspec.json.encode(trip))

    def champion_answers() -> bool:
        answer = predict(router, pipeline.name, order("c-1")).json()
        return bool(answer["model"]["variant"] == "champion")

    router.until("/livez", lambda _answer: champion_answers())


async def test_killed_router_gives_every_unit_the_same_variant_after_its_restart_without_kafka(
    board: Any, make_router: Any, make_pipeline: MakePipeline
) -> None:
    pipeline = make_pipeline()
    await board.pipeline(pipeline)
    snapshot = await board.rollout(pipeline.name, share=0.25)
    router = make_router()
    router.start()
    follows(router, snapshot)
    units = [f"customer-{number}" for number in range(60)]

    def variants() -> dict[str, str]:
        answer = predict(router, pipeline.name, [order(unit) for unit in units]).json()
        models = [item["model"]["variant"] for item in answer["predictions"]]
        return dict(zip(units, models, strict=True))

    before = variants()
    router.kill()
    router.environment["KAFKA_BOOTSTRAP_SERVERS"] = "127.0.0.1:9"  # nobody listens there
    router.start()
    after = variants()

    assert after == before == {unit: snapshot.assign(unit).value for unit in units}
    assert set(before.values()) == {"champion", "challenger"}


async def test_sigterm_under_load_loses_no_request_and_exits_with_zero(
    board: Any, make_router: Any, make_pipeline: MakePipeline
) -> None:
    pipeline = make_pipeline()
    await board.pipeline(pipeline)
    router = make_router()
    router.start()
    follows(router, await board.rollout(pipeline.name, share=0.25))
    statuses: list[int] = []
    path = f"/v1/pipelines/{pipeline.name}/predict"
    asked = asyncio.Event()

    async def load(client: httpx.AsyncClient, unit: str) -> None:
        while True:
            try:
                answer = await client.post(path, json=order(unit))
            except httpx.ConnectError:
                return  # it listens no longer: a balancer has been told by then
            statuses.append(answer.status_code)
            if len(statuses) > 50:
                asked.set()

    async with (
        httpx.AsyncClient(base_url=router.url, timeout=10) as client,
        asyncio.TaskGroup() as group,
    ):
        for number in range(8):
            group.create_task(load(client, f"c-{number}"))
        await asked.wait()
        code = await asyncio.to_thread(router.terminate)

    assert set(statuses) == {200}
    assert code == 0


async def test_shadow_is_scored_beside_and_never_answers(
    board: Any, models: Any, router: Any, make_pipeline: MakePipeline
) -> None:
    pipeline = make_pipeline()
    models.misbehave(95, "ERRS")
    await board.pipeline(pipeline)
    snapshot = await board.rollout(
        pipeline.name, challenger=95, phase=Phase.SHADOW, is_shadowing=True
    )
    follows(router, snapshot)

    answers = [predict(router, pipeline.name, order(f"c-{number}")) for number in range(5)]

    assert {answer.json()["model"]["variant"] for answer in answers} == {"champion"}
    router.until("/livez", lambda _answer: bool(models.rows[95, "shadow"] == 5))


async def test_pipeline_without_a_champion_says_what_to_do_next(
    board: Any, router: Any, make_pipeline: MakePipeline
) -> None:
    pipeline = make_pipeline()
    await board.pipeline(pipeline)
    path = f"/v1/pipelines/{pipeline.name}/rollout"
    router.until(path, lambda answer: "no rollout yet" in answer.text)

    answer = predict(router, pipeline.name, order("c-1"))

    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "NO_CHAMPION"
    assert f"/v1/pipelines/{pipeline.name}/runs" in answer.json()["fix"]


@pytest.fixture
async def served(board: Any, router: Any, make_pipeline: MakePipeline) -> Pipeline:
    pipeline = make_pipeline()
    await board.pipeline(pipeline)
    follows(router, await board.rollout(pipeline.name, challenger=None, phase=Phase.CHAMPION))
    return pipeline


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b"{", 400, "not JSON"),
        (b"", 400, "empty"),
        (b'[{"a": 1}', 400, "not a JSON array"),
        (b'{"order_id": "1"}', 422, "customer_id"),
        (b'{"vector": [1, 2, 3], "unit": 7}', 422, "unit"),
        (b'{"entities": {"custmer_id": "1"}}', 422, "did you mean 'customer_id'?"),
        (b'{"entities": {}}', 422, "customer_id"),
        (b'{"order_id": "1", "$available_at": 5}', 403, "$available_at"),
    ],
)
def test_bad_input_is_answered_with_its_place_and_fix(
    router: Any, served: Pipeline, content: bytes, status: int, says: str
) -> None:
    url = f"{router.url}/v1/pipelines/{served.name}/predict"

    answer = httpx.post(url, content=content)

    assert (answer.status_code, says in answer.text) == (status, True), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_unknown_pipeline_names_the_nearest(router: Any, served: Pipeline) -> None:
    answer = predict(router, served.name[:-1], order("c-1"))

    assert answer.status_code == 404
    assert answer.json()["fix"] == f"did you mean {served.name!r}?"


def test_body_beyond_the_limit_is_refused(router: Any, served: Pipeline) -> None:
    answer = predict(router, served.name, order("c-1", note="x" * 1_100_000))

    assert answer.status_code == 413


def test_batch_answers_each_row_for_itself(router: Any, served: Pipeline) -> None:
    rows = [order("c-1"), {"order_id": "2"}, {"entities": {"customer_id": "c-3"}}]

    answer = predict(router, served.name, [*rows, {"vector": [1.0, None]}])

    items = answer.json()["predictions"]
    assert answer.status_code == 200
    assert [item.get("score", item.get("status")) for item in items] == [0.01, 422, 0.01, 0.01]


def test_traceparent_of_the_caller_reaches_inference(
    models: Any, router: Any, served: Pipeline
) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"

    answer = predict(
        router, served.name, order("c-1"), traceparent=f"00-{trace_id}-b7ad6b7169203331-01"
    )

    (row,) = [row for row in models.seen if row.prediction_id == answer.json()["prediction_id"]]
    assert row.traceparent.split("-")[1] == trace_id
    assert row.traceparent.split("-")[2] != "b7ad6b7169203331"


def test_replayed_row_carries_its_instant_to_inference(
    models: Any, router: Any, served: Pipeline
) -> None:
    stamped = order("c-1") | {"$available_at": 1_767_225_600_500}

    answer = predict(router, served.name, stamped, **{"X-Replay-Token": "replay-token"})

    (row,) = [row for row in models.seen if row.prediction_id == answer.json()["prediction_id"]]
    assert row.available_at == 1_767_225_600_500
    assert msgspec.json.decode(row.event) == order("c-1")
