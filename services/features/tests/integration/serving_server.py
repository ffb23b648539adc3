"""A features server with a pipeline of its own, and what tests ask of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc
import httpx
from redis import Redis

from homeostat.cli.publishing import publish
from homeostat.cli.stack import ports
from homeostat.cli.testing import SessionStack, running_service
from homeostat.common.http import PROBLEM
from homeostat.common.proto import features_pb2 as pb
from homeostat.common.proto import features_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from .conftest import Rig

PATIENCE_SECONDS = 120
MAX_ROWS = 50


class Serving:
    """A running server, and the pipeline that it folds."""

    def __init__(self, rig: Rig, url: str, target: str) -> None:
        self.rig = rig
        self.url = url
        self.target = target
        self.newest = int(time.time()) - 60  # epoch seconds

    @property
    def events(self) -> list[dict[str, object]]:
        paid = (("c1", 10.0), ("c2", 5.0), ("c1", 20.0))
        return [
            {
                "id": f"e{number}",
                "time": self.newest - 2 + number,
                "card": card,
                "terminal": "t1",
                "amount": amount,
            }
            for number, (card, amount) in enumerate(paid)
        ]

    @property
    def name(self) -> str:
        return self.rig.name

    def read(self, document: Any, *, pipeline: str | None = None) -> httpx.Response:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        path = f"/v1/pipelines/{pipeline or self.name}/features/read"
        return httpx.post(f"{self.url}{path}", content=body, timeout=30)

    def post(self, path: str, document: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", content=json.dumps(document), timeout=30)

    def call(self, request: pb.ReadRequest) -> pb.ReadResponse:
        with grpc.insecure_channel(self.target) as channel:
            stub = pb_grpc.FeaturesStub(channel)  # type: ignore[no-untyped-call]  # generated
            answer: pb.ReadResponse = stub.Read(request, timeout=30)
            return answer

    def wait_until_known(self) -> None:
        """Until the server has the pipeline, and each partition has told how far it is."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            answer = httpx.get(f"{self.url}/v1/features/catalogue?pipeline={self.name}")
            if answer.status_code == 200:
                return
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.1)


@contextmanager
def serving(rig: Rig, **env: str) -> Iterator[Serving]:
    """A server that knows the rig's pipeline."""
    asyncio.run(publish(rig.pipeline, bootstrap_servers=rig.stack.kafka))
    port = ports.choose({"grpc": 0}, ports.PortPolicy.FREE)["grpc"]
    environment = {
        "FEATURES_GRPC_PORT": str(port),
        "FEATURES_READ_MAX_ROWS": str(MAX_ROWS),
        # The machine of a test run is busier than one that serves.
        "FEATURES_READ_TIMEOUT": "PT2S",
        "FEATURES_STALE_AFTER": "PT1H",
        "FEATURES_SESSION_TIMEOUT": "PT6S",
        **env,
    }
    with running_service(
        "homeostat.features",
        rig.stack,
        rig.folder,
        port_variable="FEATURES_PORT",
        env=environment,
    ) as service:
        running = Serving(rig, service.url, f"127.0.0.1:{port}")
        running.wait_until_known()
        yield running


@contextmanager
def one_round_trip(stack: SessionStack) -> Iterator[None]:
    """Exactly one MGET within; nothing else in the session asks for several keys meanwhile."""
    with Redis.from_url(stack.redis_url) as redis:

        def calls() -> int:
            stats: Any = redis.info("commandstats")
            return int(stats.get("cmdstat_mget", {}).get("calls", 0))

        before = calls()
        yield
        assert calls() - before == 1


def rfc3339(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def catalogued(server: Serving, is_awaited: Callable[[Any], bool] = lambda _entry: True) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        answer = httpx.get(f"{server.url}/v1/features/catalogue?pipeline={server.name}", timeout=30)
        [entry] = answer.json()["pipelines"]
        if is_awaited(entry):
            return entry
        assert time.monotonic() < deadline, entry
        time.sleep(0.05)


def assert_problem(answer: httpx.Response, status: int, told: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    document = answer.json()
    assert document.keys() >= {"type", "title", "status", "code", "detail"}
    assert told in json.dumps(document, ensure_ascii=False)
    assert len(answer.content) < 10_000
