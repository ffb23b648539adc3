"""The broker is killed under load: nothing that was acknowledged is lost or doubled, and callers of
the router do not notice."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from deltalake import DeltaTable

from homeostat.cli.replay.drain import Drain
from homeostat.cli.stack.state import StackState
from homeostat.cli.testing import RunningSystem
from homeostat.common.pipeline import Pipeline, load

PAYMENTS = Path(__file__).parent / "payments.yaml"
ROWS = 20
BEFORE, AFTER = 600, 600  # acknowledged events on either side of the kill

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


def event(number: int) -> dict[str, object]:
    return {
        "transaction_id": f"k{number}",
        "event_time": round(time.time(), 3),
        "customer_id": f"c{number % 37}",
        "terminal_id": f"t{number % 11}",
        "amount": 10 + number % 90,
        "channel": "web",
    }


async def carefully(http: httpx.AsyncClient, address: str, **request: Any) -> httpx.Response:
    """Ask again as often as the answer is "not now", and no sooner than it says."""
    while True:
        answer = await http.post(address, **request)
        if answer.status_code not in (429, 503):
            return answer
        await asyncio.sleep(float(answer.headers["Retry-After"]))


@dataclass
class Load:
    """Sends events as a careful client does, and asks for predictions beside."""

    system: RunningSystem
    pipeline: str
    acknowledged: list[str] = field(default_factory=list)
    predictions: Counter[int] = field(default_factory=Counter)

    async def send(self, until: int) -> None:
        """Send until so many events have been acknowledged; what is refused is sent again."""
        address = self.system.url("ingest", f"/v1/pipelines/{self.pipeline}/events")
        async with httpx.AsyncClient(timeout=60) as http:
            while len(self.acknowledged) < until:
                first = len(self.acknowledged)
                events = [event(number) for number in range(first, first + ROWS)]
                body = msgspec.json.Encoder().encode_lines(events)
                answer = await carefully(
                    http, address, content=body, headers={"content-type": "application/x-ndjson"}
                )
                assert answer.status_code == 202, answer.text
                self.acknowledged += [str(item["transaction_id"]) for item in events]

    async def ask(self) -> None:
        address = self.system.url("router", f"/v1/pipelines/{self.pipeline}/predict")
        async with httpx.AsyncClient(timeout=10) as http:
            while True:
                answer = await http.post(address, json=event(10**6 + self.predictions.total()))
                self.predictions[answer.status_code] += 1
                await asyncio.sleep(0.02)


def kill_broker(system: RunningSystem) -> int:
    """Kill Kafka, which its keeper starts again; how often it had been started anew before."""
    state = StackState.read(system.home)
    broker = state.of("kafka") if state else None
    assert broker is not None
    assert broker.process is not None
    os.kill(broker.process.pid, signal.SIGKILL)
    return broker.restarts


async def through_a_kill(system: RunningSystem, pipeline: str) -> tuple[Load, int]:
    sending = Load(system, pipeline)
    asking = asyncio.create_task(sending.ask())
    await sending.send(BEFORE)
    before = kill_broker(system)
    await sending.send(BEFORE + AFTER)
    asking.cancel()
    async with Drain(
        pipeline,
        bootstrap_servers=system.addresses.kafka,
        services={"features": system.url("features")},
    ) as drain:
        await drain.wait("features")
    async with httpx.AsyncClient(timeout=60) as http:
        address = system.url("features", f"/v1/pipelines/{pipeline}/offline/commit")
        answer = await carefully(http, address)
        assert answer.status_code == 200, answer.text
    return sending, before


def test_a_killed_broker_costs_no_acknowledged_event_and_no_prediction(
    system: RunningSystem, crowned: Callable[[Pipeline], Pipeline]
) -> None:
    pipeline = crowned(load(PAYMENTS).model_copy(update={"name": "broker-kill"}))

    sent, restarts = asyncio.run(through_a_kill(system, pipeline.name))

    vectors = DeltaTable(system.home.offline / pipeline.name / "vectors").to_pyarrow_table()
    ids = Counter(vectors.column("id").to_pylist())
    assert set(ids) == set(sent.acknowledged)
    assert set(ids.values()) == {1}
    assert set(sent.predictions) == {200}
    state = StackState.read(system.home)
    broker = state.of("kafka") if state else None
    assert broker is not None
    assert broker.restarts == restarts + 1
