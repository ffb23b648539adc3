"""Where the services of a running system are: from the environment, else from the local stack."""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from homeostat.cli.errors import CliError
from homeostat.cli.stack.home import Home
from homeostat.cli.stack.ports import LOOPBACK
from homeostat.cli.stack.services import SERVICES
from homeostat.cli.stack.state import StackState

CONNECT_SECONDS = 2.0


@dataclass(frozen=True)
class Addresses:
    """``urls`` maps a service's name to its HTTP address, without a slash at the end."""

    kafka: str
    urls: Mapping[str, str]
    replay_token: str

    @classmethod
    def find(cls) -> "Addresses":
        """``KAFKA_BOOTSTRAP_SERVERS`` and ``HOMEOSTAT_<SERVICE>_URL``, else what `up` started.

        Raises:
            CliError: neither names a broker.
        """
        return cls.of(Home.find(), os.environ)

    @classmethod
    def of(cls, home: Home, environment: Mapping[str, str]) -> "Addresses":
        """The stack in ``home``, each address replaced by its variable where that is set."""
        state = StackState.read(home)
        known = {**(state.env if state else {}), **environment}
        if not known.get("KAFKA_BOOTSTRAP_SERVERS"):
            raise CliError("no stack is running here", fix="homeostat up")
        ports = {
            name: port
            for process in (state.processes if state else [])
            for name, port in process.ports.items()
        }
        urls = {
            service.name: environment.get(
                f"HOMEOSTAT_{service.name.upper()}_URL",
                f"http://{LOOPBACK}:{ports.get(service.name, service.port)}",
            ).rstrip("/")
            for service in SERVICES
        }
        return cls(known["KAFKA_BOOTSTRAP_SERVERS"], urls, known.get("INGEST_REPLAY_TOKEN", ""))

    def reachable(self) -> "Addresses":
        """These, once a broker answers: a client takes its time to say that there is none.

        Raises:
            CliError: nothing listens at any of the addresses; a stack may have been stopped.
        """
        for server in self.kafka.split(","):
            host, _, port = server.rpartition(":")
            with suppress(OSError, ValueError):
                socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
                return self
        raise CliError(
            f"no broker answers at {self.kafka}",
            fix="homeostat up, or the address of a running one in KAFKA_BOOTSTRAP_SERVERS",
        )
