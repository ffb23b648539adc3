"""The services of the stack: one table, and the environment that each is given."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from homeostat.cli.errors import UsageError
from homeostat.cli.stack import probes
from homeostat.cli.stack.credentials import Credentials, SigningKeys
from homeostat.cli.stack.home import Home, user_cache
from homeostat.cli.stack.ports import LOOPBACK
from homeostat.cli.stack.program import Program


@dataclass(frozen=True)
class Service:
    """A row of the table; ports are the documented ones, used when free."""

    name: str
    module: str
    port: int
    grpc_port: int | None = None
    prefix: str = ""  # of its variables; empty: its name in capitals

    @property
    def ports(self) -> dict[str, int]:
        grpc = {} if self.grpc_port is None else {f"{self.name}-grpc": self.grpc_port}
        return {self.name: self.port, **grpc}


SERVICES = (
    Service("ingest", "homeostat.ingest", 8001, 9001),
    Service("features", "homeostat.features", 8002, 9002),
    Service("inference", "homeostat.inference", 8003, 9003),
    Service("drift", "homeostat.drift", 8004),
    Service("trainer", "homeostat.trainer", 8005),
    Service("router", "homeostat.router", 8000, 9000),
    Service("judge", "homeostat.router.judge", 8006, prefix="ROUTER_JUDGE"),
)


def named(names: list[str]) -> list[Service]:
    """The rows called ``names``, in the table's order."""
    known = {service.name for service in SERVICES}
    if unknown := sorted(set(names) - known):
        raise UsageError(
            f"unknown service: {', '.join(unknown)}",
            fix=f"choose from {', '.join(service.name for service in SERVICES)}",
        )
    return [service for service in SERVICES if service.name in names]


def program(
    service: Service, *, home: Home, ports: Mapping[str, int], shared: Mapping[str, str]
) -> Program:
    """``ports`` are those of the whole stack, ``shared`` the addresses of its servers."""
    mine = {name: ports[name] for name in service.ports}
    return Program(
        name=service.name,
        argv=(sys.executable, "-m", service.module),
        ports=mine,
        ready=probes.http(mine[service.name], "/readyz"),
        live=probes.http(mine[service.name], "/livez"),
        env={**shared, **_own(service, home, mine), **_siblings(service, home, ports)},
        cwd=home.root.parent,
    )


def _own(service: Service, home: Home, mine: Mapping[str, int]) -> dict[str, str]:
    prefix = service.prefix or service.name.upper()
    env = {
        f"{prefix}_PORT": str(mine[service.name]),
        "HOMEOSTAT_STATE_DIR": str(home.service_state(service.name)),
        "HOMEOSTAT_TRACE_DIR": str(home.traces),
        "OFFLINE_STORE_PATH": str(home.offline),
        "OTEL_SERVICE_NAME": service.name,
        "NUMBA_CACHE_DIR": str(user_cache() / "numba"),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if service.grpc_port is not None:
        env[f"{prefix}_GRPC_PORT"] = str(mine[f"{service.name}-grpc"])
    return env


def _siblings(service: Service, home: Home, ports: Mapping[str, int]) -> dict[str, str]:
    """Where the services that this one calls listen, and the keys that only it may hold."""
    match service.name:
        case "router" | "judge":
            return {
                # The same two cores also train: a caller would rather wait than be refused.
                "ROUTER_REQUEST_TIMEOUT": "PT3S",
                "ROUTER_CHALLENGER_TIMEOUT": "PT1S",
                "ROUTER_INFERENCE_TARGET": f"{LOOPBACK}:{ports['inference-grpc']}",
                "ROUTER_INGEST_URL": f"http://{LOOPBACK}:{ports['ingest']}",
                "ROUTER_JUDGE_URL": f"http://{LOOPBACK}:{ports['judge']}",
                "INGEST_REPLAY_TOKEN": Credentials.of(home).replay_token,
            }
        case "trainer":
            return {
                "TRAINER_FEATURES_URL": f"http://{LOOPBACK}:{ports['features']}",
                "MODEL_SIGNING_KEY_FILE": str(SigningKeys.of(home).private),
            }
        case "inference":
            return {"MODEL_VERIFY_KEY_FILE": str(SigningKeys.of(home).public)}
        case "ingest":
            return {"INGEST_REPLAY_TOKEN": Credentials.of(home).replay_token}
        case _:
            return {}
