"""Processes that outlive their parent: naming one beyond doubt, and ending what a run left.

A pid alone is no identity, because the kernel gives it away again. A pid with its start time is.
Children also carry the state folder in their environment, so that those whose pid was never
recorded (the supervisor died in between, or a child forked) are found too.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "HOMEOSTAT_STACK"
GRACE_SECONDS = 20.0


@dataclass(frozen=True)
class ProcessId:
    """A process that cannot be mistaken for a later one with the same pid."""

    pid: int
    started: float

    @classmethod
    def current(cls) -> "ProcessId":
        return cls(os.getpid(), psutil.Process().create_time())

    @classmethod
    def of(cls, pid: int) -> "ProcessId | None":
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return None

    def process(self) -> psutil.Process | None:
        """The process, when it is this one and still running."""
        try:
            process = psutil.Process(self.pid)
            # The clock behind start times is read in ticks: the same process may differ a little.
            same = abs(process.create_time() - self.started) < 1.0
            return process if same and is_alive(process) else None
        except psutil.NoSuchProcess:
            return None

    @property
    def is_running(self) -> bool:
        return self.process() is not None


def marked(home: Path) -> list[psutil.Process]:
    """Every process started for the stack in ``home``, by the mark in its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(home) and is_alive(process):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def end_all(home: Path, recorded: Iterable[ProcessId]) -> list[str]:
    """End the marked and the recorded processes, but not this one; return their names."""
    living = [process for entry in recorded if (process := entry.process()) is not None]
    others = {process for process in (*living, *marked(home)) if process.pid != os.getpid()}
    names = [_name(process) for process in others]
    end(others)
    return names


def working_in(folder: Path, *, name: str) -> list[psutil.Process]:
    """Every process called ``name`` whose current directory is ``folder``."""
    place = str(folder.resolve())
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == name and process.cwd() == place and is_alive(process):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def end(processes: Iterable[psutil.Process], *, grace: float = GRACE_SECONDS) -> None:
    """Ask politely, wait up to ``grace`` seconds for all of them together, then kill."""
    living = list(processes)
    for process in living:
        _signal(process, psutil.Process.terminate)
    _, stubborn = psutil.wait_procs(living, timeout=grace)
    for process in stubborn:
        _signal(process, psutil.Process.kill)
    psutil.wait_procs(stubborn, timeout=5)


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return f"process {process.pid}"


def is_alive(process: psutil.Process) -> bool:
    """Still running; one that ended and that its parent has not yet buried is not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal(process: psutil.Process, send: Callable[[psutil.Process], None]) -> None:
    try:
        send(process)
    except psutil.NoSuchProcess:
        return
