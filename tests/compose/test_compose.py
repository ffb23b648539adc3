"""The composed system: built, started, healthy, and the loop closes over it.

It runs beside a composed stack in daily use: under another project name, and on free ports.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from homeostat.cli.addresses import Addresses
from homeostat.cli.stack import ports
from homeostat.cli.stack.home import Home
from homeostat.cli.stack.services import SERVICES
from homeostat.cli.testing import ReachableSystem
from tests.e2e import loop

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "homeostat-test"
HEALTHY_SECONDS = 420.0  # a first start compiles the window kernels, on two cores for all of it
REGISTERED_SECONDS = 120.0
POLL_SECONDS = 1.0

pytestmark = [pytest.mark.compose, pytest.mark.timeout(3600)]


@dataclass(frozen=True)
class Composed:
    """A running compose project; ``environment`` is what a command on the host needs."""

    compose: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def system(self) -> ReachableSystem:
        return ReachableSystem(Addresses.of(Home(Path("nowhere")), self.environment))

    def run(self, *arguments: str) -> None:
        subprocess.run(
            [*self.compose, *arguments],
            cwd=ROOT,
            env={**os.environ, **self.environment},
            check=True,
        )

    def unhealthy(self) -> dict[str, str]:
        """What the engine says of each container that should be healthy and is not."""
        wanted = _checked_containers()
        told = _docker(
            *("ps", "--all", "--filter", f"label=com.docker.compose.project={PROJECT}"),
            *("--format", '{{.Label "com.docker.compose.service"}}\t{{.Status}}'),
        )
        states = dict(line.split("\t") for line in told.splitlines())
        found = {name: states.get(name, "absent") for name in wanted}
        return {name: state for name, state in found.items() if "(healthy)" not in state}


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    compose = _compose_command()
    folder = tmp_path_factory.mktemp("compose")
    file = folder / "docker-compose.yml"
    text, environment = _on_free_ports((ROOT / "docker-compose.yml").read_text())
    file.write_text(text)
    options = ("--project-name", PROJECT, "--project-directory", str(ROOT), "--file", str(file))
    project = Composed((*compose, *options), environment)
    try:
        project.run("up", "--detach", "--build")
        _wait_until_healthy(project)
        yield project
    finally:
        project.run("down", "--volumes", "--remove-orphans")


def test_the_loop_closes_over_containers(composed: Composed, tmp_path: Path) -> None:
    loop.assert_closes(composed.system, tmp_path)

    champion = composed.system.get("judge", "/v1/pipelines/payments/rollout")["champion"]
    assert _registered(composed.system, "payments", champion)
    assert composed.unhealthy() == {}


def test_the_command_on_the_host_sees_every_service_ready(
    composed: Composed, tmp_path: Path
) -> None:
    environment = {**os.environ, **composed.environment, "HOMEOSTAT_HOME": str(tmp_path)}

    told = subprocess.run(
        [Path(sys.executable).with_name("homeostat"), "status", "-o", "json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert told.returncode == 0, told.stdout + told.stderr
    states = {entry["name"]: entry["state"] for entry in json.loads(told.stdout)["services"]}
    assert states == dict.fromkeys((service.name for service in SERVICES), "ready")


def _compose_command() -> tuple[str, ...]:
    """How compose is called here; the tests are skipped where there is no engine, or no compose."""
    if shutil.which("docker") is None:
        pytest.skip("there is no docker command")
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:  # noqa: S607 - whichever docker people use
        pytest.skip("no container engine answers `docker info`")
    if shutil.which("docker-compose") is not None:
        return ("docker-compose",)
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)  # noqa: S607 - as above
    if plugin.returncode != 0:
        pytest.skip("neither docker-compose nor the compose plugin of docker is installed")
    return ("docker", "compose")


def _on_free_ports(text: str) -> tuple[str, dict[str, str]]:
    """The compose file with other ports on the host, and the variables that lead there."""
    standard = re.findall(r'"127\.0\.0\.1:(\d+):\d+"', text)
    chosen = ports.choose(dict.fromkeys(standard, 0), ports.PortPolicy.FREE)
    # Also in what Kafka tells a client on the host.
    moved = re.sub(
        r'(127\.0\.0\.1):(\d+)(?=:\d+"|$)',
        lambda found: f"{found[1]}:{chosen[found[2]]}",
        text,
        flags=re.MULTILINE,
    )
    environment = {
        "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{chosen['9092']}",
        "INGEST_REPLAY_TOKEN": secrets.token_hex(16),
        "POSTGRES_PASSWORD": secrets.token_hex(16),
        "REDIS_PASSWORD": secrets.token_hex(16),
    }
    for service in SERVICES:
        address = f"http://127.0.0.1:{chosen[str(service.port)]}"
        environment[f"HOMEOSTAT_{service.name.upper()}_URL"] = address
    return moved, environment


def _checked_containers() -> list[str]:
    document = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return [name for name, entry in document["services"].items() if "healthcheck" in entry]


def _wait_until_healthy(project: Composed) -> None:
    deadline = time.monotonic() + HEALTHY_SECONDS
    while unhealthy := project.unhealthy():
        if time.monotonic() > deadline:
            project.run("logs", "--no-color", "--tail=40", *unhealthy)
            pytest.fail(f"not healthy after {HEALTHY_SECONDS:g} s: {unhealthy}")
        time.sleep(POLL_SECONDS)


def _registered(system: ReachableSystem, pipeline: str, version: int) -> bool:
    """Whether MLflow has the version, its files included, before patience ends."""
    deadline = time.monotonic() + REGISTERED_SECONDS
    while time.monotonic() < deadline:
        versions = system.get("trainer", f"/v1/pipelines/{pipeline}/versions")["versions"]
        if any(v["version"] == version and v["mlflow_version"] for v in versions):
            return True
        time.sleep(POLL_SECONDS)
    return False


def _docker(*arguments: str) -> str:
    return subprocess.run(
        ["docker", *arguments],  # noqa: S607 - as above
        capture_output=True,
        check=True,
        text=True,
    ).stdout
