"""One trace holds an event's whole way: front door, Kafka hops, features, inference."""

import json
import secrets
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from homeostat.cli.testing import RunningSystem
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import Pipeline, load

PAYMENTS = Path(__file__).parents[1] / "e2e" / "payments.yaml"
EXPORT_SECONDS = 60

pytestmark = [pytest.mark.telemetry, pytest.mark.timeout(240)]


def test_one_trace_leads_from_the_front_door_to_the_prediction(
    system: RunningSystem, crowned: Callable[[Pipeline], Pipeline]
) -> None:
    pipeline = crowned(load(PAYMENTS).model_copy(update={"name": "traced"}))
    trace_id = secrets.token_hex(16)
    event = {
        "transaction_id": "t1",
        "event_time": time.time(),
        "customer_id": "c1",
        "terminal_id": "t1",
        "device_id": "d1",
        "amount": 12.5,
        "channel": "web",
    }

    answer = httpx.post(
        system.url("ingest", f"/v1/pipelines/{pipeline.name}/events"),
        content=json.dumps(event),
        headers={"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"},
    )

    assert answer.status_code == 202, answer.text
    logs = FeatureView(pipeline).logs
    hops = [
        ("ingest", "send traced-events"),
        ("features", "process traced-events"),
        *(("features", f"process {log}") for log in logs.values()),
        ("inference", "process traced-features"),
    ]
    spans = exported(system, trace_id, wanted={name for _, name in hops})
    by_name = {span["name"]: span for span in spans}
    for (_, before), (_, after) in pairwise(hops):
        assert by_name[after]["parent_id"] == by_name[before]["span_id"], (before, after)
    assert [(by_name[name]["service"], name) for _, name in hops] == hops


def exported(system: RunningSystem, trace_id: str, *, wanted: set[str]) -> list[dict[str, Any]]:
    """The spans of a trace from the exported files, as soon as all the wanted ones are there."""
    deadline = time.monotonic() + EXPORT_SECONDS
    while True:
        spans = [
            span
            for file in system.home.traces.glob("*.jsonl")
            for span in map(json.loads, file.read_text().splitlines())
            if span["trace_id"] == trace_id
        ]
        if wanted <= {span["name"] for span in spans}:
            return spans
        assert time.monotonic() < deadline, sorted(span["name"] for span in spans)
