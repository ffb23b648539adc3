"""Reading features over REST and gRPC, and the catalogue, where a worker has folded events."""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import grpc
import httpx
import msgspec
import pytest
from redis import Redis

from homeostat.cli.testing import SessionStack
from homeostat.common import kafka, topics
from homeostat.common.feature_store import online
from homeostat.common.proto import features_pb2 as pb
from homeostat.common.schemas.models import (
    Artifact,
    Distribution,
    Golden,
    ModelVersion,
    Reference,
    VersionState,
)
from homeostat.common.windows import Status

from .serving_server import (
    MAX_ROWS,
    Serving,
    assert_problem,
    catalogued,
    one_round_trip,
    rfc3339,
)

pytestmark = pytest.mark.integration


def test_a_read_gives_values_statuses_and_ages_in_one_round_trip(
    server: Serving, stack: SessionStack
) -> None:
    with one_round_trip(stack):
        answer = server.read(
            {
                "entities": [{"card": "c1", "terminal": "t1"}, {"card": "nobody"}],
                "features": ["card_last", "ratio", "card_mean_30m", "terminal_count_1h"],
                "at": server.newest + 60,
            }
        )

    assert answer.status_code == 200, answer.text
    document = answer.json()
    newest = rfc3339(server.newest)
    assert document["definition_hash"] == server.rig.view.definition_hash
    assert document["rows"] == [
        {
            "entities": {
                "card": {"key": "c1", "event_time": newest, "age_seconds": 60.0},
                "terminal": {"key": "t1", "event_time": newest, "age_seconds": 60.0},
            },
            "features": {
                "card_last": {"value": 20.0, "status": "present"},
                "ratio": {"value": 1.0, "status": "null"},
                "card_mean_30m": {"value": 15.0, "status": "present"},
                "terminal_count_1h": {"value": 3.0, "status": "present"},
            },
        },
        {
            "entities": {"card": {"key": "nobody", "event_time": None, "age_seconds": None}},
            "features": {
                "card_last": {"value": None, "status": "missing"},
                "ratio": {"value": 1.0, "status": "null"},
                "card_mean_30m": {"value": None, "status": "missing"},
                "terminal_count_1h": {"value": None, "status": "missing"},
            },
        },
    ]


def test_a_read_without_features_or_instant_gives_all_of_them_now(server: Serving) -> None:
    before = time.time()

    document = server.read({"entities": [{"card": "c2"}]}).json()

    [row] = document["rows"]
    assert [*row["features"]] == [*server.rig.pipeline.features]
    assert before - 1 < datetime.fromisoformat(document["at"]).timestamp() < time.time() + 1
    assert row["features"]["card_count_1h"] == {"value": 1.0, "status": "present"}


def test_a_window_that_was_empty_at_the_instant_is_so(server: Serving) -> None:
    asked = {
        "entities": [{"card": "c1"}],
        "features": ["card_count_1h"],
        "at": server.newest + 7199,
    }

    [row] = server.read(asked).json()["rows"]

    assert row["features"]["card_count_1h"] == {"value": 0.0, "status": "present"}
    assert row["entities"]["card"]["age_seconds"] == 7199.0


def test_no_entities_are_answered_with_no_rows(server: Serving) -> None:
    assert server.read({"entities": []}).json()["rows"] == []


BAD_READS: dict[str, tuple[Any, int, str]] = {
    "no body": (b"", 400, "not JSON"),
    "half a body": (b'{"entities": [', 400, "not JSON"),
    "endless brackets": (b"[" * 100_000, 422, "body"),
    "bytes that are no text": (b'{"entities": [{"card": "\xff"}]}', 400, "not JSON"),
    "a list": ([], 422, "body"),
    "no entities": ({}, 422, "entities"),
    "entities that are an object": ({"entities": {"card": "c1"}}, 422, "entities"),
    "a key that is a number": ({"entities": [{"card": 5}]}, 422, "entities[0]"),
    "an unknown member": ({"entities": [], "feature": []}, 422, "feature"),
    "an unknown entity": ({"entities": [{"crd": "c1"}]}, 422, "did you mean 'card'?"),
    "no key": ({"entities": [{"card": "c1"}, {}]}, 422, "entities[1]"),
    "an empty key": ({"entities": [{"card": ""}]}, 422, "entities[0].card"),
    "NUL in a key": ({"entities": [{"card": "a\0"}]}, 422, "entities[0].card"),
    "a long key": ({"entities": [{"card": "x" * 100_000}]}, 422, "entities[0].card"),
    "an unknown feature": (
        {"entities": [{"card": "c1"}], "features": ["card_lst"]},
        422,
        "did you mean 'card_last'?",
    ),
    "an instant that is none": ({"entities": [{"card": "c1"}], "at": "noon"}, 422, '"at"'),
    "an instant without a zone": (
        {"entities": [{"card": "c1"}], "at": "2026-01-01T00:00:00"},
        422,
        "zone",
    ),
    "too many rows": (
        {"entities": [{"card": "c1"}] * (MAX_ROWS + 1)},
        422,
        f"send at most {MAX_ROWS}",
    ),
    "a thousand unknown features": (
        {"entities": [{"card": "c1"}], "features": [f"{n}{'x' * 100}" for n in range(1000)]},
        422,
        "no such feature",
    ),
    "too many bytes": (b" " * 6_000_000, 413, "larger than"),
}


def test_more_readers_than_connections_wait_for_their_turn(server: Serving) -> None:
    body = {"entities": [{"card": "c1"}], "features": ["card_last"]}

    with ThreadPoolExecutor(48) as readers:
        answers = [*readers.map(lambda _: server.read(body).status_code, range(192))]

    assert set(answers) == {200}


@pytest.mark.parametrize(("body", "status", "told"), BAD_READS.values(), ids=BAD_READS)
def test_a_bad_read_is_a_problem_document(
    server: Serving, body: Any, status: int, told: str
) -> None:
    assert_problem(server.read(body), status, told)


def test_an_unknown_pipeline_names_the_nearest(server: Serving) -> None:
    answer = server.read({"entities": []}, pipeline=f"{server.name}x")

    assert_problem(answer, 404, f"did you mean '{server.name}'?")


def test_a_corrupt_row_is_unavailable_and_harms_no_other(
    server: Serving, stack: SessionStack
) -> None:
    key = online.row_key(server.name, server.rig.view.definition_hash, "card", "broken")
    with Redis.from_url(stack.redis_url) as redis:
        redis.set(key, b"\x01\x00garbage that nobody wrote")

    broken, sound = server.read(
        {
            "entities": [{"card": "broken", "terminal": "t1"}, {"card": "c1"}],
            "features": ["card_last", "terminal_count_1h"],
        }
    ).json()["rows"]

    assert broken["features"] == {
        "card_last": {"value": None, "status": "unavailable"},
        "terminal_count_1h": {"value": 3.0, "status": "present"},
    }
    assert broken["entities"]["card"]["event_time"] is None
    assert sound["features"]["card_last"] == {"value": 20.0, "status": "present"}


def test_grpc_reads_the_same(server: Serving, stack: SessionStack) -> None:
    request = pb.ReadRequest(
        pipeline=server.name,
        entities=[pb.EntityKeys(keys={"card": "c1"}), pb.EntityKeys(keys={"card": "nobody"})],
        features=["card_mean_30m", "ratio"],
        at=(server.newest + 60) * 1000,
    )

    with one_round_trip(stack):
        answer = server.call(request)

    known, unknown = answer.rows
    assert answer.definition_hash == server.rig.view.definition_hash
    assert (list(answer.features), answer.at) == (["card_mean_30m", "ratio"], request.at)
    assert list(known.values) == [15.0, 1.0]
    assert list(known.statuses) == [Status.PRESENT, Status.NULL]
    assert dict(known.event_times) == {"card": server.newest * 1000}
    assert math.isnan(unknown.values[0])
    assert list(unknown.statuses) == [Status.MISSING, Status.NULL]
    assert dict(unknown.event_times) == {}


BAD_CALLS = {
    "an unknown pipeline": (pb.ReadRequest(pipeline="crds"), "NOT_FOUND", "no pipeline"),
    "an unknown feature": (pb.ReadRequest(features=["card_lst"]), "INVALID_ARGUMENT", "card_last"),
    "an unknown entity": (
        pb.ReadRequest(entities=[pb.EntityKeys(keys={"crd": "c"})]),
        "INVALID_ARGUMENT",
        "did you mean 'card'?",
    ),
    "no key": (pb.ReadRequest(entities=[pb.EntityKeys()]), "INVALID_ARGUMENT", "entities[0]"),
    "too many rows": (
        pb.ReadRequest(entities=[pb.EntityKeys()] * (MAX_ROWS + 1)),
        "INVALID_ARGUMENT",
        "at most",
    ),
    "an instant out of range": (pb.ReadRequest(at=2**62), "INVALID_ARGUMENT", "at"),
}


@pytest.mark.parametrize(("request_", "code", "told"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_a_bad_call_fails_with_its_code(
    server: Serving, request_: pb.ReadRequest, code: str, told: str
) -> None:
    asked = pb.ReadRequest()
    asked.CopyFrom(request_)
    asked.pipeline = asked.pipeline or server.name

    with pytest.raises(grpc.RpcError) as failure:
        server.call(asked)

    error: Any = failure.value
    assert error.code().name == code
    assert told in error.details()


def test_the_catalogue_tells_what_a_feature_is_costs_and_feeds(
    server: Serving, stack: SessionStack
) -> None:
    version = ModelVersion(
        pipeline=server.name,
        version=3,
        state=VersionState.APPROVED,
        created_at=0,
        available_at=0,
        cause="test",
        artifact=Artifact(sha256="0" * 64, size_bytes=1, uri=""),
        features=("card_mean_30m",),
        definition_hash=server.rig.view.definition_hash,
        threshold=0.5,
        golden=Golden((), ()),
        reference=Reference({}, Distribution((), (0,)), positive_share=0.0, metrics={}),
    )
    asyncio.run(_announce(stack, version))

    entry = catalogued(server, lambda entry: bool(entry["features"][0]["consumers"]))

    view = server.rig.view
    assert {key: entry[key] for key in ("pipeline", "owner", "definition_hash")} == {
        "pipeline": server.name,
        "owner": "tests",
        "definition_hash": view.definition_hash,
    }
    assert [*entry["entities"]] == ["card", "terminal", "device"]
    card = entry["entities"]["card"]
    assert card["bytes_per_entity_bound"] == view.folds["card"].bytes_per_entity_bound
    assert card["definition_hash"] == view.folds["card"].definition_hash
    assert card["freshness"]["status"] == "present"
    assert 0 <= card["freshness"]["age_seconds"] < 3600
    by_name = {feature["name"]: feature for feature in entry["features"]}
    assert by_name["card_mean_30m"] == {
        "name": "card_mean_30m",
        "type": "float64",
        "consumers": [{"version": 3, "state": "approved"}],
        "entity": "card",
        "aggregate": "mean(amount)",
        "window": "sliding 30m",
    }
    assert by_name["terminal_fraud_7d"]["delay"] == "1d"
    assert by_name["ratio"] == {
        "name": "ratio",
        "type": "float64",
        "consumers": [],
        "expression": "amount / card_mean_30m",
        "default": 1.0,
    }


def test_the_catalogue_of_an_unknown_pipeline_names_the_nearest(server: Serving) -> None:
    answer = httpx.get(f"{server.url}/v1/features/catalogue?pipeline={server.name}x")

    assert_problem(answer, 404, f"did you mean '{server.name}'?")


async def _announce(stack: SessionStack, version: ModelVersion) -> None:
    async with kafka.producer(stack.kafka, client_id="test") as producer:
        key = f"{version.pipeline}/{version.version}".encode()
        await producer.send_and_wait(
            topics.MODEL_VERSIONS.of(), msgspec.json.encode(version), key=key
        )
