"""What `status` says of services that were not started from here."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from homeostat.cli.main import app
from homeostat.cli.stack import ports
from homeostat.cli.stack.services import SERVICES

NAMES = [service.name for service in SERVICES]


class Handler(BaseHTTPRequestHandler):
    """Ready, unless asked under ``/unready``."""

    def do_GET(self) -> None:
        status = 503 if self.path.startswith("/unready") else 200
        check = "ok" if status == 200 else "the broker does not answer"
        body = json.dumps({"ready": status == 200, "checks": {"kafka": check}}).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not to the terminal."""


@pytest.fixture
def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address at which every service is ready, and nothing was started from here."""
    monkeypatch.setenv("HOMEOSTAT_HOME", str(tmp_path))
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092")
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        for name in NAMES:
            monkeypatch.setenv(f"HOMEOSTAT_{name.upper()}_URL", address)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield address
        server.shutdown()
        thread.join()


def test_services_elsewhere_are_up_when_all_say_so(answering: str) -> None:
    told = CliRunner().invoke(app, ["status", "-o", "json"])

    assert told.exit_code == 0
    assert json.loads(told.stdout) == {
        "up": True,
        "services": [
            {"name": name, "url": answering, "state": "ready", "reason": ""} for name in NAMES
        ],
    }


def test_one_that_is_not_ready_says_why(answering: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOMEOSTAT_ROUTER_URL", f"{answering}/unready")

    told = CliRunner().invoke(app, ["status", "-o", "json"])

    assert told.exit_code == 1
    router = next(s for s in json.loads(told.stdout)["services"] if s["name"] == "router")
    assert (router["state"], router["reason"]) == ("not ready", "kafka: the broker does not answer")


def test_one_that_does_not_answer_is_away(answering: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answering
    monkeypatch.setenv("HOMEOSTAT_DRIFT_URL", f"http://127.0.0.1:{ports.free()}")

    told = CliRunner().invoke(app, ["status"])

    assert told.exit_code == 1
    assert "away" in told.stdout
