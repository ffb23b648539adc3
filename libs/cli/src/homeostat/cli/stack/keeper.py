"""Keeping one program running: start, watch, restart with backoff, stop."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from homeostat.cli.stack.processes import ProcessId
from homeostat.cli.stack.program import PreparationFailed, Program, identity
from homeostat.cli.stack.state import Phase, ProcessState

FIRST_BACKOFF = 0.5
LONGEST_BACKOFF = 10.0
PROBE_INTERVAL = 0.1
PROBE_INTERVAL_WHEN_READY = 2.0
KEPT_LOG_BYTES = 20_000_000


class Keeper:
    """Runs ``program`` until ``stop``; ``changed`` is called after each change of ``state``."""

    def __init__(
        self,
        program: Program,
        *,
        log: Path,
        env: Mapping[str, str],
        changed: Callable[[], None],
    ) -> None:
        self.program = program
        self.state = ProcessState(program.name, dict(program.ports))
        self.up = asyncio.Event()  # live or ready, at least once
        self._log = log
        self._env = env
        self._changed = changed
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep(), name=self.program.name)

    async def stop(self) -> None:
        """End the program, politely at first, and everything that it started."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._process is not None:
            await self._end(self._process)
        self._enter(Phase.STOPPED)

    async def _keep(self) -> None:
        backoff = FIRST_BACKOFF
        while True:
            try:
                was_ready = await self._run_once()
            except (PreparationFailed, OSError) as error:
                was_ready = False
                self._enter(Phase.CRASHED, reason=str(error))
                self._note(str(error))
            backoff = FIRST_BACKOFF if was_ready else backoff
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, LONGEST_BACKOFF)
            self.state.restarts += 1

    async def _run_once(self) -> bool:
        """One life of the program; true when it was up before it ended."""
        self._enter(Phase.PREPARING)
        await asyncio.to_thread(self.program.prepare)
        with self._open_log() as log:
            process = await asyncio.create_subprocess_exec(
                *self.program.argv,
                env={**self._env, **self.program.env},
                cwd=self.program.cwd,
                **identity(self.program.user),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._process = process
        self.state.process = ProcessId.of(process.pid)
        self._enter(Phase.STARTING)
        watch = asyncio.create_task(self._watch())
        try:
            code = await process.wait()
        finally:
            watch.cancel()
        self._process = None
        was_up = self.state.phase.is_up
        _kill_group(process.pid)
        self._enter(Phase.CRASHED, reason=f"ended with {_describe(code)}")
        return was_up

    async def _watch(self) -> None:
        """Follow the program's readiness for as long as it runs."""
        while True:
            phase = await self._probe()
            if phase is not self.state.phase:
                self._enter(phase)
            if phase.is_up:
                self.up.set()
            await asyncio.sleep(
                PROBE_INTERVAL_WHEN_READY if phase is Phase.READY else PROBE_INTERVAL
            )

    async def _probe(self) -> Phase:
        if await self.program.ready():
            return Phase.READY
        if self.program.live is not None and await self.program.live():
            return Phase.LIVE
        return Phase.STARTING

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        with suppress(ProcessLookupError):
            process.send_signal(self.program.stop_signal)
        try:
            async with asyncio.timeout(self.program.grace):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        _kill_group(process.pid)

    def _enter(self, phase: Phase, *, reason: str = "") -> None:
        """The reason of a crash stays told until the program is up again."""
        self.state.phase = phase
        self.state.since = time.time()
        if reason or phase.is_up:
            self.state.reason = reason
        self._changed()

    def _open_log(self) -> BinaryIO:
        if self._log.exists() and self._log.stat().st_size > KEPT_LOG_BYTES:
            self._log.replace(self._log.with_suffix(".log.1"))
        return self._log.open("ab")

    def _note(self, text: str) -> None:
        with self._open_log() as log:
            log.write(f"{text}\n".encode())


def _kill_group(leader: int) -> None:
    """Each program leads a group of its own, so its helpers do not outlive it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _describe(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
