"""One writer for each known pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from homeostat.common.errors import unknown_pipeline
from homeostat.common.pipeline import Snapshot
from homeostat.features.offline.writer import Writer
from homeostat.features.settings import Settings


class Writers:
    """Starts a writer when its pipeline appears, and stops it when that is gone."""

    def __init__(self, settings: Settings, is_informed: Callable[[], bool]) -> None:
        self._settings = settings
        self._is_informed = is_informed
        self._writers: dict[str, Writer] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    def follow(self, name: str, snapshot: Snapshot | None) -> None:
        """A changed definition needs nothing: its vectors bring their own columns."""
        if snapshot is None:
            writer = self._writers.pop(name, None)
            if writer is not None:
                task = asyncio.create_task(writer.stop())
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)
        elif name not in self._writers:
            self._writers[name] = Writer(snapshot.pipeline, self._settings)
            self._writers[name].start()

    def of(self, pipeline: str) -> Writer:
        """
        Raises:
            NotFound: no such pipeline was applied.
            TransientError: nothing has been heard of pipelines yet.
        """
        if pipeline not in self._writers:
            raise unknown_pipeline(pipeline, self._writers, is_informed=self._is_informed())
        return self._writers[pipeline]

    def problem(self) -> str | None:
        """For readiness: which writers write nothing, and why."""
        problems = {name: writer.problem for name, writer in self._writers.items()}
        found = [f"{name}: {problem}" for name, problem in problems.items() if problem]
        return "; ".join(found) or None

    async def stop(self) -> None:
        """Commit everything that was taken in."""
        await asyncio.gather(*(writer.stop() for writer in self._writers.values()), *self._leaving)
