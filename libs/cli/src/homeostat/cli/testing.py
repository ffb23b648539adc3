"""The embedded stack for tests: the real servers, once a session, in a temporary folder.

The root ``conftest.py`` makes fixtures of this. The servers end with the process that started
them, also when that is killed: their supervisor holds the other end of a pipe.
"""

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from aiokafka import TopicPartition

from homeostat.cli.addresses import Addresses
from homeostat.cli.stack import jars, launch, ports
from homeostat.cli.stack.home import Home
from homeostat.cli.stack.plan import STORES, Plan
from homeostat.cli.stack.servers import postgres
from homeostat.cli.stack.servers import redis as redis_server
from homeostat.cli.stack.services import SERVICES
from homeostat.common import kafka, topics
from homeostat.common.schemas.audit import Record

START_SECONDS = 90.0


@dataclass(frozen=True)
class SessionStack:
    """Addresses of a running Kafka, Postgres and Redis.

    They are shared by the whole session: a test names its topics and keys for itself, and takes
    a ``fresh_database`` when it needs tables.
    """

    home: Path
    kafka: str
    database_url: str
    redis_url: str

    def fresh_database(self) -> str:
        """Create an empty database and return its address."""
        name = f"test_{secrets.token_hex(6)}"
        postgres.create_database(self.database_url, name)
        server, _, _ = self.database_url.rpartition("/")
        return f"{server}/{name}"

    def retire_pipelines(self) -> None:
        """Delete every pipeline, version and rollout that a test has published.

        Services of later tests follow all there are: a features server would start a worker for
        each.
        """
        asyncio.run(retire_pipelines(self.kafka))


async def retire_pipelines(bootstrap_servers: str) -> None:
    """Send a tombstone for everything that is published of pipelines."""
    compacted = (topics.PIPELINES, topics.DEFINITIONS, topics.ROLLOUTS, topics.MODEL_VERSIONS)
    declared = [(topic.of(), topic) for topic in compacted]
    await kafka.ensure_topics(bootstrap_servers, declared)
    async with (
        kafka.consumer(bootstrap_servers=bootstrap_servers, client_id="test") as reader,
        kafka.producer(bootstrap_servers, client_id="test") as writer,
    ):
        partitions = [TopicPartition(name, 0) for name, _ in declared]  # as views read them
        reader.assign(partitions)
        alive: set[tuple[str, bytes]] = set()
        for partition, end in (await reader.end_offsets(partitions)).items():
            while await reader.position(partition) < end:
                for records in (await reader.getmany(partition, timeout_ms=500)).values():
                    for record in records:
                        named = (record.topic, record.key)
                        alive.discard(named) if record.value is None else alive.add(named)
        for name, key in sorted(alive):
            await writer.send_and_wait(name, None, key)


@contextmanager
def running_stores(folder: Path) -> Iterator[SessionStack]:
    """Kafka, Postgres and Redis in ``folder``, on free ports, for as long as the context lasts."""
    jars.class_path()
    home = Home(folder)
    plan = Plan.make(servers=STORES, environment={})
    with _running(home, plan, awaited=plan.servers):
        env = plan.addresses(home)
        yield SessionStack(
            home=folder,
            kafka=env["KAFKA_BOOTSTRAP_SERVERS"],
            database_url=env["DATABASE_URL"],
            redis_url=env["REDIS_URL"],
        )


@contextmanager
def running_mlflow(folder: Path, stack: SessionStack) -> Iterator[str]:
    """An MLflow server on the stack's Postgres; its address. It takes half a minute to start."""
    home = Home(folder)
    environment = {"DATABASE_URL": stack.database_url}
    plan = Plan.make(servers=("mlflow",), environment=environment)
    with _running(home, plan, awaited=plan.servers):
        yield plan.addresses(home)["MLFLOW_TRACKING_URI"]


@contextmanager
def _running(home: Home, plan: Plan, *, awaited: tuple[str, ...]) -> Iterator[None]:
    read_end, write_end = os.pipe()
    try:
        supervisor = launch.start(home, plan, tether=read_end)
    finally:
        os.close(read_end)
    try:
        launch.wait_until_up(home, supervisor, seconds=START_SECONDS, awaited=awaited)
        yield
    finally:
        os.close(write_end)
        supervisor.wait(timeout=launch.STOP_SECONDS)


async def audit_chain(bootstrap_servers: str, last: Record) -> list[Record]:
    """A service's chain of decisions up to ``last``, oldest first, once its topic has all of it.

    Decisions about other pipelines stand between, and each pipeline's are sent for themselves.
    """
    reader = kafka.consumer(
        topics.AUDIT.of(), bootstrap_servers=bootstrap_servers, client_id="test"
    )
    await reader.start()
    found = {last.digest: last}
    chain = [last]
    try:
        async with asyncio.timeout(60):
            while chain[-1].previous:
                if (before := found.get(chain[-1].previous)) is not None:
                    chain.append(before)
                    continue
                for batch in (await reader.getmany(timeout_ms=200)).values():
                    records = [msgspec.json.decode(item.value, type=Record) for item in batch]
                    found |= {record.digest: record for record in records}
    finally:
        await reader.stop()
    return chain[::-1]


@dataclass(frozen=True)
class ReachableSystem:
    """Every service, wherever it runs, by its address."""

    addresses: Addresses

    def url(self, service: str, path: str = "") -> str:
        return f"{self.addresses.urls[service]}{path}"

    def get(self, service: str, path: str) -> Any:
        """The JSON of a service's answer, which must be a good one."""
        import httpx

        response = httpx.get(self.url(service, path), timeout=60)
        response.raise_for_status()
        return response.json()

    def post(self, service: str, path: str, document: Any = None) -> Any:
        import httpx

        response = httpx.post(self.url(service, path), json=document, timeout=300)
        response.raise_for_status()
        return response.json()


@dataclass(frozen=True)
class RunningSystem(ReachableSystem):
    """The whole embedded stack, every service in it, and where everything is."""

    home: Home

    @property
    def redis_url(self) -> str:
        return Plan.read(self.home).addresses(self.home)["REDIS_URL"]


@contextmanager
def running_system(folder: Path) -> Iterator[RunningSystem]:
    """The whole stack with every service, on free ports, for as long as the context lasts."""
    jars.class_path()
    home = Home(folder)
    plan = Plan.make(services=tuple(service.name for service in SERVICES), environment={})
    with _running(home, plan, awaited=plan.awaited):
        yield RunningSystem(Addresses.of(home, {}), home)


class StoppableRedis:
    """A Redis of the test's own, which keeps its address while it is away."""

    def __init__(self) -> None:
        self._port = ports.choose({"redis": 0}, ports.PortPolicy.FREE)["redis"]
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"redis://{ports.LOOPBACK}:{self._port}/0"

    def start(self) -> None:
        from redis import Redis
        from redis.backoff import ConstantBackoff
        from redis.retry import Retry

        options = ("--port", str(self._port), "--save", "", "--appendonly", "no")
        self._process = subprocess.Popen(
            [str(redis_server.executable()), *options], stdout=subprocess.DEVNULL
        )
        with Redis.from_url(self.url, retry=Retry(ConstantBackoff(0.05), 200)) as client:
            client.ping()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@dataclass(frozen=True)
class ServiceProcess:
    """One service as a process of its own; ``url`` has no slash at the end."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def stop(self, *, seconds: float = 25) -> int:
        """SIGTERM, and the exit code once it has drained."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=seconds)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def running_service(
    module: str, stack: SessionStack, folder: Path, *, port_variable: str, env: Mapping[str, str]
) -> Iterator[ServiceProcess]:
    """``python -m module`` against the stack, once it is live; killed when the context ends."""
    port = ports.choose({"http": 0}, ports.PortPolicy.FREE)["http"]
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "service.log"
    environment = {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": stack.kafka,
        "DATABASE_URL": stack.database_url,
        "REDIS_URL": stack.redis_url,
        "HOMEOSTAT_STATE_DIR": str(folder / "state"),
        "OFFLINE_STORE_PATH": str(folder / "offline"),
        "OMP_NUM_THREADS": "1",
        port_variable: str(port),
        **env,
    }
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module], env=environment, stdout=output, stderr=output
        )
    service = ServiceProcess(process, f"http://127.0.0.1:{port}", log)
    try:
        _wait_until_live(service)
        yield service
    finally:
        if process.poll() is None:
            service.kill()


def _wait_until_live(service: ServiceProcess) -> None:
    import httpx

    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if service.process.poll() is not None:
            raise RuntimeError(f"the service ended:\n{service.log.read_text()[-4000:]}")
        try:
            if httpx.get(f"{service.url}/livez", timeout=1).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise RuntimeError(f"the service is not live:\n{service.log.read_text()[-4000:]}")
