"""Is it answering? One request in each server's own protocol, over loopback, without a client.

A port that accepts is not a server that answers, and importing four client libraries to ask four
questions would cost more than the servers' start.
"""

import asyncio
import struct
from collections.abc import Awaitable, Callable

from homeostat.cli.stack.ports import LOOPBACK

Probe = Callable[[], Awaitable[bool]]

PATIENCE_SECONDS = 2.0
_API_VERSIONS = struct.pack(">hhih", 18, 0, 1, -1)  # key, version, correlation id, no client id
_KAFKA_REQUEST = struct.pack(">i", len(_API_VERSIONS)) + _API_VERSIONS


def kafka(port: int) -> Probe:
    """Answers once the broker serves requests, which is after it joined its quorum."""

    async def answers() -> bool:
        return len(await _ask(port, _KAFKA_REQUEST, 10)) == 10

    return answers


def postgres(port: int, user: str) -> Probe:
    """Takes connections: it asks for the password, while a starting server refuses."""
    parameters = b"".join(text.encode() + b"\0" for text in ("user", user)) + b"\0"
    hello = struct.pack(">ii", 8 + len(parameters), 3 << 16) + parameters

    async def answers() -> bool:
        return await _ask(port, hello, 1) == b"R"

    return answers


def redis(port: int) -> Probe:
    """Loaded its data and takes commands; asked without the password, it says so."""

    async def answers() -> bool:
        return (await _ask(port, b"PING\r\n", 5)).startswith((b"+PONG", b"-NOAU"))

    return answers


def http(port: int, path: str) -> Probe:
    """Answers 200 to ``GET path``."""

    async def answers() -> bool:
        request = f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\nConnection: close\r\n\r\n"
        return (await _ask(port, request.encode(), 12)).endswith(b" 200")

    return answers


async def _ask(port: int, request: bytes, size: int) -> bytes:
    """Send ``request``, return the first ``size`` bytes of the answer; fewer when it gave up."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                writer.write(request)
                return await reader.readexactly(size)
            finally:
                writer.close()
    except asyncio.IncompleteReadError as short:
        return short.partial
    except (OSError, TimeoutError):
        return b""
