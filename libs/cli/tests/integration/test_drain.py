"""A replay moves the clock only when every hop has done what was there for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from homeostat.cli.replay.drain import Drain
from homeostat.cli.testing import SessionStack
from homeostat.common.errors import TransientError

pytestmark = pytest.mark.integration

IDLE: dict[str, Any] = {"positions": {}, "pending": []}
BUSY: dict[str, Any] = {"positions": {}, "pending": [{"kind": "training", "id": "run 1"}]}


@dataclass
class Hop:
    """A service that gives these answers in turn, the last one for ever."""

    name: str
    asked: list[str]  # by all hops, in order
    answers: list[dict[str, Any]] = field(default_factory=lambda: [IDLE])

    def answer(self) -> bytes:
        self.asked.append(self.name)
        return json.dumps(
            self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        ).encode()


@contextmanager
def listening(hop: Hop) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = hop.answer()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Tests are quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def drained(stack: SessionStack, *hops: Hop, patience: float = 30) -> None:
    with ExitStack() as servers:
        services = {hop.name: servers.enter_context(listening(hop)) for hop in hops}
        drain = Drain("toy", bootstrap_servers=stack.kafka, services=services, patience=patience)
        async with drain:
            await drain.wait()


async def test_later_hops_are_not_asked_while_the_first_is_busy(stack: SessionStack) -> None:
    asked: list[str] = []
    first = Hop("features", asked, [BUSY, BUSY, IDLE])
    second = Hop("trainer", asked)

    await drained(stack, first, second)

    assert asked[:4] == ["features", "features", "features", "trainer"]
    assert sorted(asked[4:]) == ["features", "trainer"]


async def test_a_hop_that_is_busy_again_is_waited_for_again(stack: SessionStack) -> None:
    asked: list[str] = []
    first = Hop("features", asked, [IDLE, BUSY, BUSY, IDLE])
    second = Hop("trainer", asked)

    await drained(stack, first, second)

    assert asked.count("features") == 5  # passed; the whole look found it busy; busy; passed; rest


async def test_what_does_not_move_is_named(stack: SessionStack) -> None:
    asked: list[str] = []

    with pytest.raises(TransientError, match="trainer: training run 1"):
        await drained(stack, Hop("features", asked), Hop("trainer", asked, [BUSY]), patience=0.5)
