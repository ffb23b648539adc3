"""The features change under a model that serves: it goes on with its own, and they stay fresh."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from homeostat.cli.publishing import publish
from homeostat.cli.replay.drain import Drain
from homeostat.cli.testing import RunningSystem
from homeostat.common.pipeline import AggregateSpec, Pipeline, load
from tests.e2e.asking import WAIT_SECONDS, asked_all_along, served, until

HERE = Path(__file__).parent
NAME = "changing"
ENTITIES = {"customer_id": "c1", "terminal_id": "t1", "device_id": "d1"}

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_a_model_goes_on_with_fresh_features_while_a_new_definition_fills(
    system: RunningSystem, crowned: Callable[[Pipeline], Pipeline]
) -> None:
    pipeline = crowned(load(HERE / "payments.yaml").model_copy(update={"name": NAME}))

    statuses, new_feature, prediction = asyncio.run(through_a_change(system, pipeline))

    assert set(statuses) == {200}
    assert new_feature == {"value": 30, "status": "present"}  # counted from before the change too
    assert prediction["model"]["version"] == 1
    assert prediction["features"]["customer_count_1h"] == {"value": 5, "status": "present"}


async def through_a_change(
    system: RunningSystem, pipeline: Pipeline
) -> tuple[list[int], dict[str, Any], dict[str, Any]]:
    await pay(system, 10, 30, 20)
    await served(system, NAME, {"entities": ENTITIES})
    most = AggregateSpec(entity="customer_id", aggregate="max(amount)", window="sliding 1h")
    features = {**pipeline.features, "customer_amount_max_1h": most}
    async with asked_all_along(system, NAME, {"entities": ENTITIES}) as statuses:
        await publish(
            pipeline.model_copy(update={"features": features}),
            bootstrap_servers=system.addresses.kafka,
        )
        new_feature = await answered(system, "customer_amount_max_1h")
        await pay(system, 5, 7)
        prediction = await served(system, NAME, {"entities": ENTITIES})
    return statuses, new_feature, prediction


async def pay(system: RunningSystem, *amounts: float) -> None:
    """Payments of now by the one customer, until they are folded."""
    now = time.time()
    payments = [
        {
            "transaction_id": f"{now}-{number}",
            "event_time": now - 1,
            **ENTITIES,
            "amount": amount,
            "channel": "web",
        }
        for number, amount in enumerate(amounts)
    ]
    address = system.url("ingest", f"/v1/pipelines/{NAME}/events")
    answer = await until(address, payments, status=202)
    assert answer["refused"] == 0, answer
    services = {"features": system.url("features")}
    async with Drain(NAME, bootstrap_servers=system.addresses.kafka, services=services) as drain:
        await drain.wait()


async def answered(system: RunningSystem, feature: str) -> dict[str, Any]:
    """What the features service says of a feature, once it knows it."""
    address = system.url("features", f"/v1/pipelines/{NAME}/features/read")
    asked = {"entities": [{"customer_id": "c1"}], "features": [feature]}
    async with httpx.AsyncClient(timeout=30) as http, asyncio.timeout(WAIT_SECONDS):
        while True:
            answer = await http.post(address, json=asked)
            if answer.status_code == 200:
                told: dict[str, Any] = answer.json()["rows"][0]["features"][feature]
                return told
            assert answer.status_code == 422, answer.text
            await asyncio.sleep(0.1)
