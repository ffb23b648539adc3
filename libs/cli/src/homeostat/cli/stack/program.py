"""One program to keep running: how to start it, how to know that it is ready, how to stop it."""

import pwd
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from homeostat.cli.stack.probes import Probe


@dataclass(frozen=True)
class Program:
    """What a keeper needs to know; ``ports`` maps a listener's name to its port."""

    name: str
    argv: tuple[str, ...]
    ports: Mapping[str, int]
    ready: Probe
    live: Probe | None = None  # a weaker sign of life, when there is one
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    user: str | None = None
    prepare: Callable[[], None] = lambda: None  # before every start, in a thread: repeatable
    stop_signal: signal.Signals = signal.SIGTERM
    grace: float = 20.0  # seconds between the stop signal and the kill


class PreparationFailed(Exception):
    """A step before a program's start ended badly; carries its last words."""


class Identity(TypedDict, total=False):
    """The part of a spawn that gives up root's rights, its groups included."""

    user: int
    group: int
    extra_groups: list[int]


def identity(user: str | None) -> Identity:
    if user is None:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def run(argv: tuple[str, ...], *, user: str | None = None, text: str = "") -> None:
    """Run a short step to its end, with ``text`` as its input."""
    ended = subprocess.run(
        argv,
        **identity(user),
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if ended.returncode != 0:
        step = Path(argv[0]).name
        raise PreparationFailed(f"{step} ended with {ended.returncode}: {ended.stdout[-2000:]}")
