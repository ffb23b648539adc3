"""Runs the training process: one at a time, within its limits, dead when we are."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta

import msgspec

from homeostat.common.errors import HomeostatError
from homeostat.trainer.messages import OUT_OF_MEMORY, Message, Request

LINE_BYTES = 64_000_000  # a judgement carries golden vectors and references
STDERR_BYTES = 4_000
# Each library has its own way to say so; the last one is a thread that got no stack.
SIGNS_OF_NO_MEMORY = (
    "MemoryError",
    "bad_alloc",
    "Cannot allocate memory",
    "Out of Memory",
    "OutOfMemory",
    "Resource temporarily unavailable",
)
# Nothing of the service's environment that is a secret is the child's business.
ENVIRONMENT = ("PATH", "HOME", "LANG", "NUMBA_CACHE_DIR", "OMP_NUM_THREADS", "TZ")


class JobFailed(HomeostatError):
    """The training process ended without a judgement."""

    code = "TRAINING_FAILED"


async def run(
    request: Request, *, time_limit: timedelta, on_message: Callable[[Message], Awaitable[None]]
) -> None:
    """Train in a child process, and hear what it says in order.

    Raises:
        JobFailed: it took too long or too much memory, crashed, or was killed.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "homeostat.trainer.job",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=LINE_BYTES,
        start_new_session=True,  # a Ctrl-C in the terminal is for the service, which drains
        env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    )
    if child.stdin is None or child.stdout is None or child.stderr is None:
        raise RuntimeError("a child made with pipes has none")
    errors = asyncio.create_task(_tail(child.stderr))
    try:
        async with asyncio.timeout(time_limit.total_seconds()):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                child.stdin.write(msgspec.json.encode(request) + b"\n")
                await child.stdin.drain()
            async for line in child.stdout:
                await on_message(msgspec.json.decode(line, type=Message))
            await child.wait()
    except TimeoutError as error:
        raise JobFailed(
            f"training took longer than {time_limit.total_seconds():g} s and was ended",
            fix="a smaller training.budget, or a larger TRAINER_TIME_LIMIT",
        ) from error
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
        child.stdin.close()
        said = await errors
    if child.returncode != 0:
        raise _failure(child.returncode, said, request.memory_limit_bytes)


def _failure(code: int | None, said: str, limit: int) -> JobFailed:
    if code == OUT_OF_MEMORY or any(sign in said for sign in SIGNS_OF_NO_MEMORY):
        return JobFailed(
            f"training needed more than {limit} bytes of memory and was ended",
            fix="a shorter training.history, or a larger TRAINER_MEMORY_LIMIT_BYTES",
        )
    ending = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "no message")
    return JobFailed(f"the training process ended with {ending}: {last}")


async def _tail(stream: asyncio.StreamReader) -> str:
    kept = b""
    while part := await stream.read(STDERR_BYTES):
        kept = (kept + part)[-STDERR_BYTES:]
    return kept.decode(errors="replace")
