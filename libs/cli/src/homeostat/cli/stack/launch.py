"""Starting and ending a stack from outside its supervisor."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from homeostat.cli.errors import CliError, TimeoutExceeded
from homeostat.cli.stack import processes
from homeostat.cli.stack.home import Home
from homeostat.cli.stack.plan import Plan
from homeostat.cli.stack.servers import postgres
from homeostat.cli.stack.state import ProcessState, StackState

POLL_SECONDS = 0.05
STOP_SECONDS = 60.0
HOPELESS_RESTARTS = 3


def start(home: Home, plan: Plan, *, tether: int | None = None) -> psutil.Process:
    """Start the supervisor of ``plan`` in ``home``, detached from the caller's terminal.

    With ``tether``, the reading end of a pipe, the stack ends when the pipe's other end closes.
    """
    home.logs.mkdir(parents=True, exist_ok=True)
    home.state.unlink(missing_ok=True)
    plan.write(home)
    argv = [sys.executable, "-m", "homeostat.cli.stack.supervisor", str(home.root)]
    with home.log("supervisor").open("ab") as log, Path(os.devnull).open("rb") as nothing:
        # Not Popen: it expects its child to end first, and this one outlives its starter.
        pid = os.posix_spawn(
            sys.executable,
            argv if tether is None else [*argv, "--tethered"],
            {**os.environ, processes.MARK: str(home.root)},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, nothing.fileno() if tether is None else tether, 0),
                (os.POSIX_SPAWN_DUP2, log.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, log.fileno(), 2),
            ],
            setsid=True,
        )
    return psutil.Process(pid)


def wait_until_up(
    home: Home,
    supervisor: psutil.Process,
    *,
    seconds: float,
    awaited: tuple[str, ...],
    report: Callable[[StackState], None] = lambda _state: None,
) -> StackState:
    """Wait until the programs named in ``awaited`` are up; ``report`` sees each state before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not processes.is_alive(supervisor):
            raise CliError(
                f"the supervisor ended at once:\n{tail(home.log('supervisor'))}",
                fix="homeostat down, then up again",
            )
        if (state := StackState.read(home)) is not None:
            report(state)
            entries = [entry for entry in state.processes if entry.name in awaited]
            if all(entry.phase.is_up for entry in entries):
                return state
            if hopeless := next((entry for entry in entries if _is_hopeless(entry)), None):
                raise _crash_loop(home, hopeless)
        time.sleep(POLL_SECONDS)
    raise TimeoutExceeded(
        f"not everything is up after {seconds:.0f} s", fix="homeostat status, homeostat logs NAME"
    )


def stop(home: Home) -> list[str]:
    """End the stack in ``home``, its supervisor alive or not; return the names of what remained."""
    state = StackState.read(home)
    if state is not None and (supervisor := state.supervisor.process()) is not None:
        supervisor.terminate()
        psutil.wait_procs([supervisor], timeout=STOP_SECONDS)
    return end_orphans(home)


def end_orphans(home: Home) -> list[str]:
    """End what a killed supervisor left running; return their names."""
    state = StackState.read(home)
    names = processes.end_all(home.root, [] if state is None else state.recorded)
    postgres.end_orphans(home.server("postgres") / "data")
    return names


def purge(home: Home) -> None:
    """Remove the data of a stopped stack."""
    shutil.rmtree(home.root)


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log; empty when there is none."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 64_000))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])


def _is_hopeless(entry: ProcessState) -> bool:
    return entry.restarts >= HOPELESS_RESTARTS and not entry.phase.is_up


def _crash_loop(home: Home, entry: ProcessState) -> CliError:
    log = home.log(entry.name)
    return CliError(
        f"{entry.name} keeps crashing ({entry.reason}); the end of its log:\n{tail(log)}",
        fix=f"homeostat logs {entry.name}; the rest is running: homeostat status, homeostat down",
    )
