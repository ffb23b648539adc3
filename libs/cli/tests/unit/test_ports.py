"""Choosing ports."""

import socket
from collections.abc import Iterator

import pytest

from homeostat.cli.stack.ports import FREE_RANGE, LOOPBACK, PortPolicy, choose, is_free


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that another server listens on."""
    with socket.socket() as server:
        server.bind((LOOPBACK, 0))
        server.listen(1)
        yield server.getsockname()[1]


def test_a_taken_standard_port_gives_way_to_the_next_free_one(taken_port: int) -> None:
    chosen = choose({"router": taken_port}, PortPolicy.STANDARD)

    assert chosen["router"] > taken_port
    assert is_free(chosen["router"])


def test_two_names_with_one_standard_port_get_different_ports() -> None:
    (standard,) = choose({"any": 0}, PortPolicy.FREE).values()

    chosen = choose({"a": standard, "b": standard}, PortPolicy.STANDARD)

    assert chosen["a"] == standard
    assert chosen["b"] > standard


def test_free_ports_lie_below_those_that_clients_are_given() -> None:
    chosen = choose({str(number): 8000 for number in range(50)}, PortPolicy.FREE)

    assert len(set(chosen.values())) == 50
    assert all(port in FREE_RANGE for port in chosen.values())


def test_a_port_in_use_is_not_free(taken_port: int) -> None:
    assert not is_free(taken_port)
