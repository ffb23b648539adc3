"""One worker process a definition: started, watched by its progress, started again.

A worker is judged from outside, by what it says of its positions and by what Kafka says of the
ends. A loop that turns is no proof of life: a worker that has lag and stands still is ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import msgspec

from homeostat.common.pipeline import Snapshot
from homeostat.common.topics import HASH_LENGTH
from homeostat.features.reports import Report

logger = logging.getLogger(__name__)

FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 30.0
HEALTHY_SECONDS = 60.0  # a worker that lived so long starts again at once
CHECK_SECONDS = 2.0
STARTUP_SECONDS = 120.0
STOP_SECONDS = 15.0


def group_of(pipeline: str, definition_hash: str, role: Role) -> str:
    what = role.value if role is Role.INTAKE else definition_hash[:HASH_LENGTH]
    return f"features-{pipeline}-{what}"


Ends = Callable[[list[tuple[str, int]]], Awaitable[Mapping[tuple[str, int], int]]]


@dataclass
class Watchdog:
    """Tells a worker that stands still from one that has nothing to do; time is an argument."""

    patience_seconds: float
    _moved: dict[tuple[str, int], tuple[int, float]] = field(default_factory=dict)

    def stuck(
        self,
        positions: Mapping[tuple[str, int], int],
        ends: Mapping[tuple[str, int], int],
        now: float,
    ) -> list[tuple[str, int]]:
        """Partitions with lag whose position has not moved for too long."""
        found = []
        for partition, position in positions.items():
            before, since = self._moved.get(partition, (-1, now))
            if position != before or position >= ends.get(partition, 0):
                since = now
            self._moved[partition] = (position, since)
            if now - since > self.patience_seconds:
                found.append(partition)
        for gone in self._moved.keys() - positions.keys():
            del self._moved[gone]
        return found


class Role(StrEnum):
    """What a worker does of a pipeline's work."""

    ALL = "all"
    INTAKE = "intake"  # raw input to the log of the source's key
    FOLD = "fold"  # that log to vectors


@dataclass(frozen=True)
class Job:
    """What a worker does, and under which generation of the pipeline."""

    snapshot: Snapshot
    definition_hash: str
    role: Role

    @property
    def pipeline(self) -> str:
        return self.snapshot.pipeline.name

    @property
    def definition(self) -> str:
        """The short name that metrics have for it."""
        return self.role if self.role is Role.INTAKE else self.definition_hash[:HASH_LENGTH]

    @property
    def group(self) -> str:
        """The consumer group of all workers that do the same."""
        return group_of(self.pipeline, self.definition_hash, self.role)

    def is_same(self, other: Job) -> bool:
        return (self.snapshot.content_hash, self.definition_hash, self.role) == (
            other.snapshot.content_hash,
            other.definition_hash,
            other.role,
        )


class WorkerSupervisor:
    """Keeps one worker running."""

    def __init__(self, job: Job, *, folder: Path, ends: Ends, patience_seconds: float) -> None:
        self.job = job
        self.report = Report([], 0.0)
        self.restarts = 0
        self._folder = folder
        self._ends = ends
        self._patience_seconds = patience_seconds
        self._process: asyncio.subprocess.Process | None = None
        self._reported_at = time.monotonic()
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def start(self) -> None:
        name = f"worker of {self.job.group}"
        self._task = asyncio.create_task(self._keep_running(), name=name)

    async def stop(self) -> None:
        """Let the worker drain; force it when it does not."""
        self._is_stopping = True
        await self._end()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def change(self, job: Job) -> None:
        """Go on with another job; what was read is settled first."""
        if not job.is_same(self.job):
            self.job = job
            await self._end()

    async def _keep_running(self) -> None:
        backoff = FIRST_BACKOFF
        while not self._is_stopping:
            started = time.monotonic()
            status = await self._run_once()
            if self._is_stopping:
                return
            if status == 0 or time.monotonic() - started > HEALTHY_SECONDS:
                backoff = FIRST_BACKOFF
            self.restarts += 1
            logger.warning(
                "worker ended, starting again",
                extra={
                    "pipeline": self.job.pipeline,
                    "definition": self.job.definition,
                    "status": status,
                    "backoff_seconds": backoff,
                },
            )
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, LONGEST_BACKOFF)

    async def _run_once(self) -> int:
        job = self.job
        path = self._folder / f"{job.group}.snapshot.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(job.snapshot.encode())
        read_end, write_end = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "homeostat.features.worker"),
                *("--pipeline", job.pipeline, "--snapshot", str(path)),
                *("--role", job.role.value, "--report-to", str(write_end)),
                pass_fds=(write_end,),
            )
        finally:
            os.close(write_end)
        # Until its first report a worker imports, compiles and restores: silence says nothing yet.
        self._reported_at = time.monotonic() + STARTUP_SECONDS
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch())
            reading = group.create_task(self._read(read_end))
            status = await self._process.wait()
            watching.cancel()
            reading.cancel()
        self.report = Report([], 0.0)
        return status

    async def _read(self, file: int) -> None:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(file, "rb")
        )
        try:
            while line := await reader.readline():
                self.report = _decode(line)
                self._reported_at = time.monotonic()
        finally:
            transport.close()

    async def _watch(self) -> None:
        watchdog = Watchdog(self._patience_seconds)
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            silent = time.monotonic() - self._reported_at
            if silent > self._patience_seconds:
                logger.error("worker is silent, ending it", extra={"seconds": round(silent)})
                self._signal(signal.SIGKILL)
                return
            positions = {(p.topic, p.partition): p.position for p in self.report.partitions}
            try:
                ends = await self._ends(list(positions))
            except OSError as error:  # without Kafka nobody makes progress
                logger.warning("ends unknown", extra={"error": repr(error)})
                watchdog = Watchdog(self._patience_seconds)
                continue
            stuck = watchdog.stuck(positions, ends, time.monotonic())
            if stuck:
                logger.error("worker stands still, ending it", extra={"partitions": stuck})
                self._signal(signal.SIGKILL)
                return

    async def _end(self) -> None:
        if not self.is_running or self._process is None:
            return
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except TimeoutError:
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


_decode = msgspec.json.Decoder(Report).decode
