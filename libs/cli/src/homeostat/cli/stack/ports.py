"""Which loopback ports the stack listens on."""

import random
import socket
from collections.abc import Iterable, Iterator
from enum import StrEnum

from homeostat.cli.errors import CliError

LOOPBACK = "127.0.0.1"

STANDARD = {
    "kafka": 9092,
    "kafka-controller": 9093,
    "postgres": 5432,
    "redis": 6379,
    "mlflow": 5000,
}

# Below the kernel's ephemeral range: there, a client that retries a stopped server's port can be
# handed that very port as its own, connect to itself, and keep the server from coming back.
FREE_RANGE = range(20_000, 32_000)


class PortPolicy(StrEnum):
    """``standard``: the documented port, or the next free one; ``free``: any free ones."""

    STANDARD = "standard"
    FREE = "free"


def choose(wanted: dict[str, int], policy: PortPolicy) -> dict[str, int]:
    """Give each name in ``wanted`` (name → standard port) a port of its own that is free now."""
    taken: set[int] = set()
    chosen = {}
    for name, standard in wanted.items():
        chosen[name] = _first_free(_candidates(standard, policy), taken)
        taken.add(chosen[name])
    return chosen


def free() -> int:
    """Any port that is free now."""
    return choose({"any": 0}, PortPolicy.FREE)["any"]


def is_free(port: int) -> bool:
    """Whether a server could listen there; connections still closing do not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def _candidates(standard: int, policy: PortPolicy) -> Iterator[int]:
    if policy is PortPolicy.STANDARD:
        yield from range(standard, min(standard + 1_000, 65_536))
    else:
        yield from random.sample(FREE_RANGE, 1_000)


def _first_free(candidates: Iterable[int], taken: set[int]) -> int:
    for port in candidates:
        if port not in taken and is_free(port):
            return port
    raise CliError("no free port found on 127.0.0.1", fix="end some servers and try again")
