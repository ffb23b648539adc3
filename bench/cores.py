"""One core for the contender, the other for what serves and drives it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

SERVERS, CONTENDER = [0], [1]


@contextmanager
def pinned(
    command: list[str], environment: dict[str, str], *, cwd: Path
) -> Iterator[subprocess.Popen[str]]:
    """A process on the contender's core, ended with its children when the context is left."""
    process = subprocess.Popen(command, env=environment, cwd=cwd, stdout=subprocess.PIPE, text=True)
    root = psutil.Process(process.pid)
    root.cpu_affinity(CONTENDER)
    try:
        yield process
    finally:
        if root.is_running():
            for child in root.children(recursive=True):
                child.kill()
        process.kill()
        process.wait()


def pin_contender(pid: int) -> None:
    """Give a running process, and what it has started, the contender's core."""
    process = psutil.Process(pid)
    for member in (process, *process.children(recursive=True)):
        member.cpu_affinity(CONTENDER)


def pin_servers() -> None:
    """Keep the servers, and this process, off the contender's core."""
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        process.cpu_affinity(SERVERS)
