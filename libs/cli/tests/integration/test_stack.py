"""The stack as a person runs it: up, killed, up again, down."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from homeostat.cli.stack import launch, processes
from homeostat.cli.stack.home import Home
from homeostat.cli.stack.plan import Plan
from homeostat.cli.stack.state import StackState

LOOPBACK = {"127.0.0.1", "::ffff:127.0.0.1", "::1"}

TETHERED_PARENT = """
import os, sys, time
from pathlib import Path
from homeostat.cli.stack import launch
from homeostat.cli.stack.home import Home
from homeostat.cli.stack.plan import Plan

home, plan = Home(Path(sys.argv[1])), Plan.make(servers=("redis",), environment={})
reading, writing = os.pipe()
supervisor = launch.start(home, plan, tether=reading)
os.close(reading)
launch.wait_until_up(home, supervisor, seconds=60, awaited=plan.awaited)
print("up", flush=True)
time.sleep(60)
"""


@dataclass(frozen=True)
class Command:
    """The `homeostat` command on a state folder of its own."""

    home: Home

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # MLflow is taken as it is: its start would outlast all of these tests.
        env = {name: value for name, value in os.environ.items() if name != "HOMEOSTAT_HOME"}
        return subprocess.run(
            [sys.executable, "-m", "homeostat.cli.main", *arguments],
            env={
                **env,
                "HOMEOSTAT_HOME": str(self.home.root),
                "MLFLOW_TRACKING_URI": "http://127.0.0.1:1",
            },
            capture_output=True,
            text=True,
            check=False,
        )

    def succeed(self, *arguments: str) -> str:
        ended = self.run(*arguments)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    @property
    def env(self) -> dict[str, str]:
        state = StackState.read(self.home)
        assert state is not None
        return state.env

    def processes(self) -> list[psutil.Process]:
        """All of the stack's: those that carry its mark, and what they started."""
        found: set[psutil.Process] = set()
        for root in processes.marked(self.home.root):
            with suppress(psutil.NoSuchProcess):  # a helper of Postgres's has done its work
                found |= {root, *root.children(recursive=True)}
        return [*found]


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    command = Command(Home(tmp_path / "home"))
    yield command
    launch.stop(command.home)


@pytest.mark.integration
def test_a_stack_keeps_its_data_when_everything_is_killed_and_started_again(
    command: Command,
) -> None:
    # Given a stack with something in each store
    command.succeed("up", "--no-services", "--ports", "free")
    document = json.loads(command.succeed("status", "-o", "json"))
    assert {entry["name"]: entry["phase"] for entry in document["processes"]} == {
        "kafka": "ready",
        "postgres": "ready",
        "redis": "ready",
    }
    _fill(command.env)

    # When every process of it is killed
    _kill(command.processes())
    assert command.run("status").returncode == 1

    # Then the next start has all of it
    command.succeed("up", "--no-services", "--ports", "free")
    assert _contents(command.env) == (["kept"], b"kept", "kept")

    # And down leaves nothing behind
    last = command.processes()
    command.succeed("down")
    assert [process for process in last if process.is_running()] == []
    assert command.processes() == []


@pytest.mark.integration
def test_every_server_listens_on_loopback_only(command: Command) -> None:
    command.succeed("up", "--no-services", "--ports", "free")

    listening = [ip for process in command.processes() for ip in _listening(process)]

    assert len(listening) == 4  # Kafka's two, Postgres, Redis
    assert set(listening) <= LOOPBACK


@pytest.mark.integration
def test_down_ends_what_a_killed_supervisor_left_and_purges_its_data(command: Command) -> None:
    command.succeed("up", "--no-services", "--ports", "free")
    everything = command.processes()
    state = StackState.read(command.home)
    assert state is not None
    os.kill(state.supervisor.pid, signal.SIGKILL)

    command.succeed("down", "--purge")

    assert [process for process in everything if process.is_running()] == []
    assert not command.home.root.exists()


@pytest.mark.integration
def test_a_second_up_finds_the_stack_and_starts_nothing(tmp_path: Path) -> None:
    command = Command(Home(tmp_path / "home"))
    plan = Plan.make(servers=("redis",), environment={})
    supervisor = launch.start(command.home, plan)
    try:
        launch.wait_until_up(command.home, supervisor, seconds=60, awaited=plan.awaited)
        before = set(command.processes())

        told = command.succeed("up", "--no-services")

        assert "already started" in told
        assert set(command.processes()) == before
    finally:
        launch.stop(command.home)


@pytest.mark.integration
def test_a_killed_server_comes_back_by_itself(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    plan = Plan.make(servers=("redis",), environment={})
    supervisor = launch.start(home, plan)
    try:
        state = launch.wait_until_up(home, supervisor, seconds=60, awaited=plan.awaited)
        first = state.processes[0].process
        assert first is not None
        server = psutil.Process(first.pid)
        server.kill()
        psutil.wait_procs([server], timeout=10)

        with redis.Redis.from_url(
            state.env["REDIS_URL"], retry=redis.retry.Retry(redis.backoff.ConstantBackoff(0.1), 100)
        ) as client:
            assert client.ping()
    finally:
        launch.stop(home)


@pytest.mark.integration
def test_a_tethered_stack_ends_with_its_owner_however_that_dies(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    owner = subprocess.Popen(
        [sys.executable, "-c", TETHERED_PARENT, str(home.root)], stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "up\n"
        servers = processes.marked(home.root)

        owner.kill()
        _, remaining = psutil.wait_procs(servers, timeout=30)

    assert len(servers) == 2  # the supervisor and Redis
    assert remaining == []


def _listening(process: psutil.Process) -> list[str]:
    """The addresses that ``process`` listens on; none when it just ended, as a backend may."""
    try:
        sockets = process.net_connections("inet")
    except psutil.NoSuchProcess:
        return []
    return [socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN]


def _kill(victims: list[psutil.Process]) -> None:
    for victim in victims:
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(victims, timeout=10)


def _fill(env: dict[str, str]) -> None:
    with psycopg.connect(env["DATABASE_URL"]) as connection:
        connection.execute("CREATE TABLE kept (word text)")
        connection.execute("INSERT INTO kept VALUES ('kept')")
    with redis.Redis.from_url(env["REDIS_URL"]) as client:
        client.set("word", "kept")
    asyncio.run(_create_topic(env["KAFKA_BOOTSTRAP_SERVERS"]))


def _contents(env: dict[str, str]) -> tuple[list[str], object, str]:
    """The topics, the key and the row."""
    with psycopg.connect(env["DATABASE_URL"]) as connection:
        row = connection.execute("SELECT word FROM kept").fetchone()
    with redis.Redis.from_url(env["REDIS_URL"]) as client:
        word = client.get("word")
    topics = asyncio.run(_topics(env["KAFKA_BOOTSTRAP_SERVERS"]))
    assert row is not None
    return topics, word, row[0]


async def _create_topic(bootstrap: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic("kept", 1, 1)])
    finally:
        await admin.close()


async def _topics(bootstrap: str) -> list[str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        return list(await admin.list_topics())
    finally:
        await admin.close()
