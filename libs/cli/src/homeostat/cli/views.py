"""What commands show of a stack, on a terminal or as plain lines."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypedDict

import psutil
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from homeostat.cli.console import stdout
from homeostat.cli.stack import jars
from homeostat.cli.stack.home import Home
from homeostat.cli.stack.plan import VARIABLES
from homeostat.cli.stack.ports import LOOPBACK
from homeostat.cli.stack.services import SERVICES
from homeostat.cli.stack.state import Phase, ProcessState, StackState

STYLES = {Phase.READY: "green", Phase.LIVE: "yellow", Phase.CRASHED: "red"}


class ProcessDocument(TypedDict):
    """One process in ``status -o json``."""

    name: str
    phase: str
    running: bool
    pid: int | None
    ports: dict[str, int]
    since: float
    restarts: int
    reason: str


class StatusDocument(TypedDict):
    """``status -o json``."""

    home: str
    up: bool
    supervised: bool
    processes: list[ProcessDocument]


def status_document(home: Home, state: StackState | None) -> StatusDocument:
    """The stored state, checked against the processes that really run."""
    entries = [] if state is None else state.processes
    supervised = state is not None and state.is_supervised
    awaited = [entry for entry in entries if entry.name != "mlflow"]
    return {
        "home": str(home.root),
        "up": supervised and all(e.phase.is_up and e.is_running for e in awaited),
        "supervised": supervised,
        "processes": [_process_document(entry) for entry in entries],
    }


def process_table(state: StackState) -> Table:
    """A row for each process; a state that nobody supervises any more says so."""
    caption = None if state.is_supervised else "not supervised: homeostat up starts it again"
    table = Table(caption=caption, box=None, pad_edge=False)
    for heading in ("process", "state", "for", "port", "pid", "memory", "restarts", "reason"):
        table.add_column(heading, overflow="fold")
    for entry in state.processes:
        phase = _true_phase(entry)
        table.add_row(
            entry.name,
            f"[{STYLES.get(phase, 'default')}]{phase}[/]",
            _elapsed(entry.since),
            " ".join(str(port) for port in entry.ports.values()),
            "" if entry.process is None else str(entry.process.pid),
            _memory(entry),
            str(entry.restarts),
            entry.reason,
        )
    return table


@contextmanager
def steps() -> Iterator[Callable[[StackState], None]]:
    """Show a start as it goes: a live list on a terminal, a line a change elsewhere."""
    console = stdout()
    if console.is_terminal:
        with Live(console=console, refresh_per_second=10, transient=True) as live:
            yield lambda state: live.update(process_table(state))
    else:
        yield _ChangeLines(console).report


class _ChangeLines:
    """Prints a process' state when it differs from the last one printed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._seen: dict[str, Phase] = {}

    def report(self, state: StackState) -> None:
        for entry in state.processes:
            if self._seen.get(entry.name) is not entry.phase:
                self._seen[entry.name] = entry.phase
                elapsed = time.monotonic() - self._began
                text = f"{elapsed:6.1f} s  {entry.name:<10} {entry.phase}  {entry.reason}"
                self._console.print(text.rstrip())


def addresses(state: StackState) -> None:
    """The end of ``up``: where to knock."""
    console = stdout()
    for service in SERVICES:
        if (entry := state.of(service.name)) is not None:
            console.print(f"{service.name:<10} http://{LOOPBACK}:{entry.ports[service.name]}")
    for variable in VARIABLES.values():
        if variable in state.env:
            console.print(f"{variable}={_without_password(state.env[variable])}", markup=False)


def fetch_kafka() -> None:
    """Make sure that Kafka is here; the first time shows how far it is."""
    if jars.is_fetched():
        jars.class_path()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=stdout()) as progress:
        task = progress.add_task(f"Kafka {jars.KAFKA_VERSION}, once", total=None)
        jars.class_path(lambda done, total: progress.update(task, completed=done, total=total))


def _process_document(entry: ProcessState) -> ProcessDocument:
    return {
        "name": entry.name,
        "phase": _true_phase(entry),
        "running": entry.is_running,
        "pid": None if entry.process is None else entry.process.pid,
        "ports": dict(entry.ports),
        "since": entry.since,
        "restarts": entry.restarts,
        "reason": entry.reason,
    }


def _true_phase(entry: ProcessState) -> Phase:
    """A process that was up and is gone has stopped, whatever the file says."""
    return Phase.STOPPED if entry.phase.is_up and not entry.is_running else entry.phase


def _elapsed(since: float) -> str:
    return str(timedelta(seconds=int(time.time() - since))) if since else ""


def _memory(entry: ProcessState) -> str:
    process = None if entry.process is None else entry.process.process()
    if process is None:
        return ""
    try:
        return f"{process.memory_info().rss / 1_000_000:.0f} MB"
    except psutil.NoSuchProcess:
        return ""


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    credentials, at, address = rest.rpartition("@")
    if not at:
        return url
    user, _, _ = credentials.partition(":")
    return f"{scheme}{separator}{user}:***@{address}"
