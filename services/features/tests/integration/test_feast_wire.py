"""Feast's wire: what its SDK sends and makes of the answers, and what is refused.

``golden/feast.json`` was written by the SDK itself; ``make wire`` runs it against the server again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from homeostat.cli.testing import SessionStack

from .serving_server import MAX_ROWS, Serving, assert_problem, one_round_trip, rfc3339

pytestmark = pytest.mark.integration

WIRE = Path(__file__).parents[4] / "tests" / "wire"
GOLDEN: Mapping[str, Any] = json.loads((WIRE / "golden" / "feast.json").read_text())
STAND_IN = "PIPELINE"  # for the pipeline's name


def golden(server: Serving, case: str) -> Any:
    """What the SDK sends for this server's pipeline, and what comes of it."""
    return json.loads(json.dumps(GOLDEN[case]).replace(STAND_IN, server.name))


@pytest.mark.parametrize("case", GOLDEN)
def test_a_request_of_the_sdk_is_answered_as_it_was(server: Serving, case: str) -> None:
    expected = golden(server, case)
    request = expected["request"]

    answer = httpx.request(
        request["method"],
        f"{server.url}{request['path']}",
        content=request["body"],
        headers={"content-type": request["content-type"]},
    )

    if "status" in expected:
        assert_problem(answer, expected["status"], expected["told"])
        return
    assert answer.status_code == 200, answer.text
    document = answer.json()
    names = document["metadata"]["feature_names"]
    assert expected["answer"] == {
        name: column["values"] for name, column in zip(names, document["results"], strict=True)
    }


@pytest.mark.wire
@pytest.mark.timeout(900)  # it installs Feast
def test_the_sdk_sends_and_understands_what_is_golden(server: Serving, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    run([sys.executable, "-m", "venv", str(tmp_path / "venv")])
    run([str(python), "-m", "pip", "install", "-q", "-r", str(WIRE / "requirements.txt")])
    repository = tmp_path / "repository"
    repository.mkdir()

    output = run(
        [str(python), str(WIRE / "feast_client.py"), server.url, server.name, str(repository)]
    )

    print(output)  # noqa: T201 - run by hand for it
    document = json.loads(output)
    assert [*document["sent"]] == [*GOLDEN]
    for case, sent in document["sent"].items():
        expected = golden(server, case)
        assert sent == expected["request"]
        if "status" in expected:
            assert expected["told"] in document["answers"][case]
        else:
            assert document["answers"][case] == expected["answer"]


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_feast_columns_are_answered_over_several_views_in_one_round_trip(
    server: Serving, stack: SessionStack
) -> None:
    whole, part = server.name, f"{server.name}__card"
    with one_round_trip(stack):
        answer = server.post(
            "/get-online-features",
            {
                "features": [f"{part}:card_last", f"{whole}:ratio", f"{whole}:terminal_count_1h"],
                "entities": {"card": ["c1", "nobody"], "terminal": ["t1", None]},
                "full_feature_names": True,
            },
        )

    assert answer.status_code == 200, answer.text
    newest = rfc3339(server.newest)
    none = "1970-01-01T00:00:00Z"
    assert answer.json() == {
        "metadata": {
            "feature_names": [
                *("card", "terminal", f"{part}__card_last"),
                *(f"{whole}__ratio", f"{whole}__terminal_count_1h"),
            ]
        },
        "results": [
            column(["c1", "nobody"], ["PRESENT", "PRESENT"], [none, none]),
            column(["t1", None], ["PRESENT", "NULL_VALUE"], [none, none]),
            column([20.0, None], ["PRESENT", "NOT_FOUND"], [newest, none]),
            column([None, None], ["NULL_VALUE", "NULL_VALUE"], [none, none]),
            column([3.0, None], ["PRESENT", "NOT_FOUND"], [newest, none]),
        ],
    }


def test_a_feast_service_is_all_features_of_a_pipeline(server: Serving) -> None:
    asked = {
        "feature_service": server.name,
        "entities": {"card": ["c1"], "terminal": ["t1"], "device": [None]},
    }

    document = server.post("/get-online-features", asked).json()

    names = document["metadata"]["feature_names"]
    assert names == ["card", "terminal", "device", *server.rig.pipeline.features]


def bad_feast(name: str) -> Mapping[str, tuple[Any, int, str]]:
    keys = {"card": ["c1"]}
    return {
        "no view": ({"features": ["card_last"], "entities": keys}, 422, "names no view"),
        "an unknown view": ({"features": [f"{name}x:a"], "entities": keys}, 404, name),
        "an unknown entity's view": (
            {"features": [f"{name}__crd:card_last"], "entities": keys},
            404,
            "did you mean 'card'?",
        ),
        "an unknown service": ({"feature_service": "x", "entities": keys}, 404, "no pipeline"),
        "an unknown feature": (
            {"features": [f"{name}:card_lst"], "entities": keys},
            422,
            "did you mean 'card_last'?",
        ),
        "a feature of another entity": (
            {"features": [f"{name}__card:terminal_count_1h"], "entities": keys},
            422,
            "no such feature",
        ),
        "no features": ({"entities": keys}, 422, "features"),
        "no join keys": ({"features": [f"{name}:card_last"], "entities": {}}, 422, "join keys"),
        "a missing join key": (
            {"features": [f"{name}:terminal_count_1h"], "entities": keys},
            422,
            "entities.terminal",
        ),
        "an unknown join key": (
            {"features": [f"{name}:card_last"], "entities": {**keys, "crd": ["c"]}},
            422,
            "no such join key",
        ),
        "columns of two lengths": (
            {"features": [f"{name}:card_last"], "entities": {**keys, "terminal": []}},
            422,
            "one length",
        ),
        "a key that is a list": (
            {"features": [f"{name}:card_last"], "entities": {"card": [["c1"]]}},
            422,
            "entities",
        ),
        "too many rows": (
            {"features": [f"{name}:card_last"], "entities": {"card": ["c"] * (MAX_ROWS + 1)}},
            422,
            "at most",
        ),
    }


@pytest.mark.parametrize("case", bad_feast("x"))
def test_a_bad_feast_request_is_a_problem_document(server: Serving, case: str) -> None:
    body, status, told = bad_feast(server.name)[case]

    assert_problem(server.post("/get-online-features", body), status, told)


@pytest.mark.parametrize("path", ["/push", "/write-to-online-store"])
def test_feast_writes_are_refused_and_shown_the_way(server: Serving, path: str) -> None:
    document = {"push_source_name": server.name, "df": {"card": ["c1"]}}

    assert_problem(server.post(path, document), 403, "POST /v1/pipelines/{pipeline}/events")


def test_feast_finds_the_server_healthy(server: Serving) -> None:
    assert httpx.get(f"{server.url}/health").status_code == 200


def column(values: list[Any], statuses: list[str], times: list[str]) -> dict[str, Any]:
    return {"values": values, "statuses": statuses, "event_timestamps": times}
