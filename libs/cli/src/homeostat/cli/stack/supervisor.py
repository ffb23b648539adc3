"""The one process that runs a stack: `python -m homeostat.cli.stack.supervisor HOME`.

It ends on SIGTERM, or, given ``--tethered``, when its standard input closes: the end of a pipe
closes however its owner dies, also by ``kill -9``.
"""

import argparse
import asyncio
import fcntl
import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

from homeostat.cli.stack import jars, java, processes, warmup
from homeostat.cli.stack.home import Home, user_cache
from homeostat.cli.stack.keeper import Keeper
from homeostat.cli.stack.plan import Plan
from homeostat.cli.stack.processes import ProcessId
from homeostat.cli.stack.program import Program
from homeostat.cli.stack.state import StackState

SERVICES_HEAD_START = 60.0  # seconds that MLflow waits for the services before it starts anyway


class Supervisor:
    """Starts the stores together, then the services, then MLflow; stops them in reverse."""

    def __init__(self, home: Home, plan: Plan) -> None:
        self._home = home
        self._plan = plan
        self._env = {**os.environ, processes.MARK: str(home.root)}
        self._state = StackState(ProcessId.current(), plan.client_environment(home))
        self._stores = self._keepers(plan.store_programs(home))
        self._services = self._keepers(plan.service_programs(home))
        self._late = self._keepers(plan.late_programs(home))
        self._state.processes = [
            keeper.state for keeper in (*self._stores, *self._services, *self._late)
        ]

    async def run(self, stopped: asyncio.Event) -> None:
        self._write()
        start = asyncio.create_task(self._start())
        await stopped.wait()
        start.cancel()
        for group in ((*self._services, *self._late), self._stores):
            await asyncio.gather(*(keeper.stop() for keeper in group))
        await asyncio.to_thread(processes.end_all, self._home.root, self._state.recorded)

    async def _start(self) -> None:
        _start_all(self._stores)
        await _all_up(self._stores)
        _start_all(self._services)
        with suppress(TimeoutError):
            async with asyncio.timeout(SERVICES_HEAD_START):
                await _all_up(self._services)
        _start_all(self._late)
        await self._warm_up()

    async def _warm_up(self) -> None:
        """Make the next start of Kafka quicker, at idle priority."""
        if "kafka" not in self._plan.servers:
            return
        if not warmup.is_due(java.find(), jars.class_path()):
            return
        with self._home.log("warmup").open("ab") as log:
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "homeostat.cli.stack.warmup"),
                env=self._env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _keepers(self, programs: Iterable[Program]) -> list[Keeper]:
        return [
            Keeper(program, log=self._home.log(program.name), env=self._env, changed=self._write)
            for program in programs
        ]

    def _write(self) -> None:
        self._state.write(self._home)


def _start_all(keepers: Iterable[Keeper]) -> None:
    for keeper in keepers:
        keeper.start()


async def _all_up(keepers: Iterable[Keeper]) -> None:
    for keeper in keepers:
        await keeper.up.wait()


async def supervise(home: Home, *, tether: IO[bytes] | None) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    if tether is not None:
        await loop.connect_read_pipe(lambda: _Tether(stopped), tether)
    await Supervisor(home, Plan.read(home)).run(stopped)


class _Tether(asyncio.Protocol):
    """Nothing is ever sent: all that matters is that the other end closes."""

    def __init__(self, stopped: asyncio.Event) -> None:
        self._stopped = stopped

    def eof_received(self) -> None:
        self._stopped.set()

    def connection_lost(self, _error: Exception | None) -> None:
        self._stopped.set()


def main() -> None:
    parser = argparse.ArgumentParser(prog="homeostat-supervisor")
    parser.add_argument("home", type=Path)
    parser.add_argument("--tethered", action="store_true")
    arguments = parser.parse_args()
    home = Home(arguments.home)
    make_folders(home)
    with home.lock.open("w") as lock:
        # Held until the process is gone, however it goes: two supervisors never share a folder.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        tether = sys.stdin.buffer if arguments.tethered else None
        asyncio.run(supervise(home, tether=tether))


def make_folders(home: Home) -> None:
    names = Plan.read(home).services
    for folder in (
        *(home.logs, home.offline, home.traces, user_cache() / "numba"),
        *(home.service_state(name) for name in names),
    ):
        folder.mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    main()
