"""Swaps, damage, a lost store and SIGTERM under load: nobody's request fails."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from homeostat.cli.stack import ports
from homeostat.common.pipeline import Pipeline
from homeostat.common.schemas.rollouts import Phase

pytestmark = pytest.mark.integration

SWAPS = 20


@dataclass
class Load:
    """Clients that ask without pause until they are stopped, or the server has gone."""

    url: str
    statuses: Counter[int] = field(default_factory=Counter)
    versions: Counter[int] = field(default_factory=Counter)
    degraded: int = 0
    answered: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def ask(self, client: int) -> None:
        with httpx.Client(timeout=10) as http:
            number = 0
            while not self._stopped.is_set():
                number += 1
                event = {
                    "id": f"{client}-{number}",
                    "at": math.floor(time.time()),
                    "customer": f"c{number % 50}",
                    "amount": float(number),
                }
                try:
                    answer = http.post(self.url, content=json.dumps(event))
                except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError) as error:
                    if not self._stopped.is_set():
                        self.broken.append(repr(error))
                    return
                self.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    document = answer.json()
                    self.versions[document["model"]["version"]] += 1
                    self.degraded += document["degraded"]
                    self.answered.append(document["prediction_id"])

    def stop(self) -> None:
        self._stopped.set()


@contextmanager
def load(server: Any, pipeline: Pipeline, *, clients: int = 4) -> Iterator[Load]:
    running = Load(f"{server.service.url}/v1/pipelines/{pipeline.name}/predict")
    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(running.ask, client) for client in range(clients)]
        try:
            server.wait_until(lambda: len(running.answered) > 20)
            yield running
        finally:
            running.stop()
    for future in asking:
        future.result()


def served(
    name: str, world: Any, server: Any, workshop: Any, make_pipeline: Callable[..., Pipeline]
) -> Pipeline:
    pipeline = make_pipeline(name)
    world.publish(pipeline)
    world.announce(workshop.train(pipeline, 1))
    world.decide(pipeline.name, 1)
    world.progress(pipeline)
    server.wait_for_champion(pipeline.name, 1)
    return pipeline


def test_clients_do_not_notice_twenty_swaps(
    world: Any, server: Any, workshop: Any, make_pipeline: Callable[..., Pipeline]
) -> None:
    pipeline = served("swapped", world, server, workshop, make_pipeline)
    for number in (2, 3):
        world.announce(workshop.train(pipeline, number))

    with load(server, pipeline) as running:
        for swap in range(SWAPS):
            number = swap % 3 + 1
            world.decide(pipeline.name, number)
            server.wait_for_champion(pipeline.name, number)

    assert set(running.statuses) == {200}
    assert running.broken == []
    assert set(running.versions) == {1, 2, 3}


def test_a_damaged_challenger_answers_503_and_the_champion_goes_on(
    world: Any, server: Any, workshop: Any, make_pipeline: Callable[..., Pipeline]
) -> None:
    pipeline = served("damaged", world, server, workshop, make_pipeline)
    # No other test's number: its file is the same in every pipeline, and a sound copy would do.
    sound = workshop.train(pipeline, 4)
    damaged = bytearray(sound.content)
    damaged[len(damaged) // 2] ^= 1

    world.announce(type(sound)(sound.version, bytes(damaged), sound.booster))
    world.decide(pipeline.name, 1, challenger=4, share=1.0, phase=Phase.CANARY)

    status = server.wait_for_state(pipeline.name, 4, "quarantined")
    assert "every copy is damaged" in status["reason"]
    answer = server.predict(pipeline.name, b'{"vector": [1, 2, 3, 4]}')
    assert (answer.status_code, answer.json()["model"]["version"]) == (200, 1)
    assert server.metric("inference_artifacts_damaged_total", pipeline="damaged") >= 1


def test_a_challenger_that_crashes_its_loader_leaves_the_server_untouched(
    world: Any, server: Any, workshop: Any, make_pipeline: Callable[..., Pipeline]
) -> None:
    pipeline = served("hostile", world, server, workshop, make_pipeline)
    sound = workshop.train(pipeline, 2)
    document = json.loads(sound.content)
    tree = document["learner"]["gradient_booster"]["model"]["trees"][0]
    tree["left_children"] = [2**30 if child != -1 else -1 for child in tree["left_children"]]
    content = json.dumps(document, separators=(",", ":")).encode()
    version = workshop.announce(pipeline, 2, content, golden=sound.version.golden)

    world.announce(type(sound)(version, content, sound.booster))
    world.decide(pipeline.name, 1, challenger=2, share=0.5, phase=Phase.CANARY)

    status = server.wait_for_state(pipeline.name, 2, "quarantined")
    assert "SIG" in status["reason"]
    assert httpx.get(f"{server.service.url}/readyz").status_code == 200
    event = {"id": "e", "at": time.time(), "customer": "c", "amount": 1}
    assert server.predict(pipeline.name, json.dumps(event).encode()).status_code == 200


def test_without_its_store_it_answers_degraded_and_recovers(
    world: Any,
    workshop: Any,
    make_pipeline: Callable[..., Pipeline],
    start_server: Callable[..., Any],
    stoppable_redis: Any,
) -> None:
    redis = stoppable_redis
    with start_server(REDIS_URL=redis.url) as server:
        pipeline = make_pipeline("storeless")
        world.publish(pipeline)
        away = world.with_redis(redis.url)
        away.announce(workshop.train(pipeline, 1))
        away.progress(pipeline)
        world.decide(pipeline.name, 1)
        server.wait_for_champion(pipeline.name, 1)

        with load(server, pipeline) as running:
            assert running.degraded == 0
            redis.stop()
            server.wait_until(lambda: running.degraded > 50)
            redis.start()
            away.progress(pipeline)
            before = running.degraded, len(running.answered)
            server.wait_until(
                lambda: len(running.answered) - before[1] > 2 * (running.degraded - before[0]) + 50
            )

    assert set(running.statuses) == {200}
    assert running.broken == []


def test_sigterm_under_load_fails_nobody_and_loses_no_ledger_row(
    world: Any,
    workshop: Any,
    make_pipeline: Callable[..., Pipeline],
    start_server: Callable[..., Any],
) -> None:
    with start_server() as server:
        pipeline = served("terminated", world, server, workshop, make_pipeline)

        with load(server, pipeline) as running:
            code = server.service.stop()

    assert code == 0
    assert set(running.statuses) == {200}
    # A connection that is refused or closed between two requests is how a client learns to go on
    # to the next replica; one that is cut within an answer would be a failure.
    assert all("Connect" in text or "disconnected" in text for text in running.broken)
    ledger = world.ledger(pipeline.name, rows=len(running.answered))
    assert set(running.answered) <= set(ledger.strings("prediction_id"))


def test_it_comes_up_from_disk_alone_when_everything_else_is_away(
    world: Any,
    workshop: Any,
    make_pipeline: Callable[..., Pipeline],
    start_server: Callable[..., Any],
) -> None:
    world.stack.retire_pipelines()  # readiness asks for the champion of each
    with start_server() as server:
        pipeline = served("static", world, server, workshop, make_pipeline)
        server.service.stop()

    nowhere = f"127.0.0.1:{ports.choose({'x': 0}, ports.PortPolicy.FREE)['x']}"
    with start_server(KAFKA_BOOTSTRAP_SERVERS=nowhere, REDIS_URL=f"redis://{nowhere}/0") as server:
        server.wait_for_champion(pipeline.name, 1)
        answer = server.predict(pipeline.name, b'{"vector": [1, 2, 3, 4]}')

        assert answer.status_code == 200
        assert httpx.get(f"{server.service.url}/readyz").status_code == 200
