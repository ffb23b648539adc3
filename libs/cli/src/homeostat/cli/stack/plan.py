"""What a supervisor shall run: written by the launcher, read by the supervisor."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from homeostat.cli.errors import CliError
from homeostat.cli.stack import archive, jars, java
from homeostat.cli.stack import ports as port_choice
from homeostat.cli.stack import services as service_table
from homeostat.cli.stack.credentials import Credentials
from homeostat.cli.stack.home import Home, write_private
from homeostat.cli.stack.ports import STANDARD, PortPolicy
from homeostat.cli.stack.program import Program
from homeostat.cli.stack.servers import kafka, mlflow, postgres, redis

VARIABLES = {
    "kafka": "KAFKA_BOOTSTRAP_SERVERS",
    "postgres": "DATABASE_URL",
    "redis": "REDIS_URL",
    "mlflow": "MLFLOW_TRACKING_URI",
}
"""Each server of the stack, and the variable that puts an existing one in its place."""

STORES = ("kafka", "postgres", "redis")


@dataclass(frozen=True)
class Plan:
    """Which servers are embedded, which exist elsewhere, which services run on them, and where."""

    servers: tuple[str, ...]
    services: tuple[str, ...]
    ports: Mapping[str, int]
    existing: Mapping[str, str] = field(default_factory=dict)  # server → its address

    @classmethod
    def make(
        cls,
        *,
        servers: tuple[str, ...] = tuple(VARIABLES),
        services: tuple[str, ...] = (),
        policy: PortPolicy = PortPolicy.FREE,
        environment: Mapping[str, str] | None = None,
    ) -> "Plan":
        """Choose ports now, and take each server that ``environment`` names as it is."""
        environment = os.environ if environment is None else environment
        existing = {
            server: environment[variable]
            for server, variable in VARIABLES.items()
            if environment.get(variable)
        }
        embedded = tuple(server for server in servers if server not in existing)
        if "mlflow" in embedded and "postgres" not in {*embedded, *existing}:
            raise CliError(
                "MLflow needs a Postgres to keep its runs in",
                fix="set DATABASE_URL, or start it too",
            )
        chosen = port_choice.choose(_standard_ports(embedded, services), policy)
        return cls(embedded, services, chosen, existing)

    @property
    def awaited(self) -> tuple[str, ...]:
        """What a start waits for: everything but MLflow, which takes longer than all the rest."""
        stores = tuple(server for server in self.servers if server in STORES)
        return stores + self.services

    @classmethod
    def read(cls, home: Home) -> "Plan":
        stored = json.loads(home.plan.read_text(encoding="utf-8"))
        return cls(
            tuple(stored["servers"]),
            tuple(stored["services"]),
            stored["ports"],
            stored["existing"],
        )

    def write(self, home: Home) -> None:
        write_private(home.plan, json.dumps(asdict(self), indent=2))

    def addresses(self, home: Home) -> dict[str, str]:
        """The variables that lead a client to every server of this stack."""
        secrets = Credentials.of(home)
        embedded = {
            "kafka": lambda port: f"{port_choice.LOOPBACK}:{port}",
            "postgres": lambda port: postgres.url(port=port, password=secrets.postgres_password),
            "redis": lambda port: redis.url(port=port, password=secrets.redis_password),
            "mlflow": lambda port: mlflow.url(port=port),
        }
        found = {server: embedded[server](self.ports[server]) for server in self.servers}
        return {VARIABLES[server]: url for server, url in {**self.existing, **found}.items()}

    def client_environment(self, home: Home) -> dict[str, str]:
        """What a client outside the stack needs: the addresses, and the replayer's token."""
        return {**self.addresses(home), "INGEST_REPLAY_TOKEN": Credentials.of(home).replay_token}

    def store_programs(self, home: Home) -> list[Program]:
        """Kafka, Postgres and Redis, as far as they are embedded."""
        return [self._server(name, home) for name in STORES if name in self.servers]

    def service_programs(self, home: Home) -> list[Program]:
        shared = self.addresses(home)
        return [
            service_table.program(service, home=home, ports=self.ports, shared=shared)
            for service in service_table.named(list(self.services))
        ]

    def late_programs(self, home: Home) -> list[Program]:
        """MLflow: nothing waits for it, and it waits for everything."""
        return [self._server("mlflow", home)] if "mlflow" in self.servers else []

    def _server(self, name: str, home: Home) -> Program:
        folder = home.server(name)
        secrets = Credentials.of(home)
        port = self.ports[name]
        match name:
            case "kafka":
                runtime, class_path = java.find(), jars.class_path()
                shared = archive.options(runtime, class_path)
                return kafka.program(
                    folder,
                    port=port,
                    controller_port=self.ports["kafka-controller"],
                    start=kafka.command(runtime, class_path, options=shared),
                )
            case "postgres":
                return postgres.program(folder, port=port, password=secrets.postgres_password)
            case "redis":
                return redis.program(folder, port=port, password=secrets.redis_password)
            case _:
                database_url = self.addresses(home)["DATABASE_URL"]
                return mlflow.program(folder, port=port, database_url=database_url)


def _standard_ports(servers: tuple[str, ...], services: tuple[str, ...]) -> dict[str, int]:
    wanted = {name: STANDARD[name] for name in servers}
    if "kafka" in servers:
        wanted["kafka-controller"] = STANDARD["kafka-controller"]
    # Siblings get a port even when they are not started: their address is known either way.
    rows = service_table.SERVICES if services else ()
    return wanted | {name: port for row in rows for name, port in row.ports.items()}
