"""Which model versions are loaded: those that a rollout names, and for a while those that it named
before.

A version comes in through a child process (``probe``) and is swapped in whole: every request
holds the model it was given, so a swap happens between two batches and an old version drains by
itself. A version that cannot be loaded is quarantined and answers 503, which sends its traffic
back to the champion.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import msgspec

from homeostat.common.artifacts import ArtifactRefused
from homeostat.common.errors import HomeostatError, NotFound, TransientError
from homeostat.common.schemas.models import ModelVersion, VersionState
from homeostat.common.schemas.rollouts import RolloutSnapshot
from homeostat.inference import metrics
from homeostat.inference.scorer import ModelRefused, Scorer, load

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 15.0


class ModelState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"  # no rollout names it any more; it answers those who have not heard
    UNAVAILABLE = "unavailable"  # its file cannot be reached now; tried again
    QUARANTINED = "quarantined"  # its file or announcement is bad; not tried again


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A version that answers. Compared by identity: a version announced anew is another model."""

    version: ModelVersion
    scorer: Scorer

    @property
    def name(self) -> str:
        return f"{self.version.pipeline} version {self.version.version}"


class ModelStatus(msgspec.Struct, frozen=True):
    """One version as ``GET …/models`` shows it."""

    version: int
    state: ModelState
    reason: str
    sha256: str
    definition_hash: str
    is_champion: bool
    is_challenger: bool


class ModelFile(Protocol):
    """A verified file: its path for the child process, and the very bytes that were verified."""

    @property
    def path(self) -> Path: ...

    @property
    def content(self) -> bytes: ...


@dataclass(eq=False)
class _Slot:
    announcement: ModelVersion
    state: ModelState = ModelState.LOADING
    reason: str = ""
    model: LoadedModel | None = None
    task: asyncio.Task[None] | None = None
    expiry: asyncio.TimerHandle | None = None

    @property
    def is_answering(self) -> bool:
        return self.state in (ModelState.READY, ModelState.DRAINING)


@dataclass
class _Line:
    """The versions of one pipeline."""

    announced: dict[int, ModelVersion] = field(default_factory=dict)
    slots: dict[int, _Slot] = field(default_factory=dict)
    rollout: RolloutSnapshot | None = None
    champion: LoadedModel | None = None  # serves until its successor is ready

    def named(self) -> Iterator[int]:
        if self.rollout is not None:
            for version in (self.rollout.champion, self.rollout.challenger):
                if version is not None:
                    yield version

    def is_undecided(self, number: int) -> bool:
        if number in self.slots:
            return self.slots[number].state is ModelState.LOADING
        return number not in self.announced


class Models:
    """Keeps what is loaded equal to what the rollouts name. Used on one event loop."""

    def __init__(
        self,
        *,
        fetch: Callable[[ModelVersion], Awaitable[ModelFile]],
        probe: Callable[[ModelVersion, Path], Awaitable[None]],
        drain: timedelta,
    ) -> None:
        self._fetch = fetch
        self._probe = probe
        self._drain_seconds = drain.total_seconds()
        self._lines: dict[str, _Line] = {}
        self._one_at_a_time = asyncio.Semaphore(1)  # a child process takes a core for a second
        self._reconciling: asyncio.Handle | None = None
        self._changed = asyncio.Condition()
        self._announcing: set[asyncio.Task[None]] = set()

    # What the topics say

    def announce(self, key: str, version: ModelVersion | None) -> None:
        """A record of ``model-versions``."""
        if version is None:
            pipeline, _, number = key.rpartition("/")
            self._line(pipeline).announced.pop(int(number), None)
        else:
            self._line(version.pipeline).announced[version.version] = version
        self._reconcile_soon()

    def follow(self, pipeline: str, rollout: RolloutSnapshot | None) -> None:
        """A record of ``rollouts``."""
        self._line(pipeline).rollout = rollout
        self._reconcile_soon()

    # What requests ask

    def rollout(self, pipeline: str) -> RolloutSnapshot | None:
        line = self._lines.get(pipeline)
        return line.rollout if line else None

    def champion(self, pipeline: str) -> LoadedModel:
        """The champion; while its successor loads, the one before.

        Raises:
            TransientError: there is none yet, or it cannot be loaded.
        """
        line = self._lines.get(pipeline)
        if line is not None and line.champion is not None:
            return line.champion
        if line is None or line.rollout is None or line.rollout.champion is None:
            raise TransientError(
                f"{pipeline!r} has no champion yet",
                fix="train a first version",
                retry_after_seconds=5,
            )
        return self.get(pipeline, line.rollout.champion)

    def get(self, pipeline: str, version: int) -> LoadedModel:
        """A version by its number.

        Raises:
            NotFound: no such version was announced.
            TransientError: it was, but does not answer here (now).
        """
        line = self._lines.get(pipeline) or _Line()
        slot = line.slots.get(version)
        if slot is not None and slot.is_answering and slot.model is not None:
            return slot.model
        name = f"{pipeline} version {version}"
        if slot is not None:
            raise TransientError(f"{name} is {slot.state}", fix=slot.reason or None)
        live = [number for number, other in sorted(line.slots.items()) if other.is_answering]
        answering = f"answering are {', '.join(map(str, live)) or 'none'}"
        if version in line.announced:
            raise TransientError(f"{name} is named by no rollout", fix=answering)
        raise NotFound(f"{name} is unknown", fix=answering)

    # What people and probes ask

    def statuses(self, pipeline: str) -> list[ModelStatus]:
        line = self._lines.get(pipeline) or _Line()
        challenger = line.rollout.challenger if line.rollout else None
        return [
            ModelStatus(
                version=number,
                state=slot.state,
                reason=slot.reason,
                sha256=slot.announcement.artifact.sha256,
                definition_hash=slot.announcement.definition_hash,
                is_champion=slot.model is not None and slot.model is line.champion,
                is_challenger=number == challenger,
            )
            for number, slot in sorted(line.slots.items())
        ]

    def loading(self, pipeline: str) -> list[int]:
        """Named versions of which it is not known yet whether they will answer."""
        line = self._lines.get(pipeline) or _Line()
        return [number for number in line.named() if line.is_undecided(number)]

    def problem(self) -> str | None:
        """Why some pipeline's champion does not answer, for readiness."""
        for pipeline, line in self._lines.items():
            if line.rollout is not None and line.rollout.champion is not None and not line.champion:
                slot = line.slots.get(line.rollout.champion)
                state = f"{slot.state} {slot.reason}".strip() if slot else "not announced"
                return f"{pipeline} version {line.rollout.champion}, the champion, is {state}"
        return None

    async def changed(self) -> None:
        """Wait until something is loaded, retired or announced."""
        async with self._changed:
            await self._changed.wait()

    async def settled(self, pipeline: str) -> None:
        """Wait until every named version has been loaded, or is known not to load."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self.loading(pipeline))

    async def stop(self) -> None:
        tasks = [
            slot.task for line in self._lines.values() for slot in line.slots.values() if slot.task
        ]
        if self._reconciling is not None:
            self._reconciling.cancel()
        for line in self._lines.values():
            for slot in line.slots.values():
                if slot.expiry is not None:
                    slot.expiry.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._announcing, return_exceptions=True)

    # How they are made equal

    def _line(self, pipeline: str) -> _Line:
        return self._lines.setdefault(pipeline, _Line())

    def _reconcile_soon(self) -> None:
        """Once for all records of a fetch: of a topic's history only the last state is loaded."""
        if self._reconciling is None:
            self._reconciling = asyncio.get_running_loop().call_soon(self._reconcile)

    def _reconcile(self) -> None:
        self._reconciling = None
        for pipeline, line in self._lines.items():
            for number in line.named():
                self._want(line, number)
            self._promote(line)
            wanted = set(line.named())
            if line.champion is not None:
                wanted.add(line.champion.version.version)
            for number in [*line.slots]:
                if number not in wanted:
                    self._retire(line, number)
            quarantined = sum(s.state is ModelState.QUARANTINED for s in line.slots.values())
            metrics.models_quarantined(pipeline, quarantined)
        task = asyncio.get_running_loop().create_task(self._announce())
        self._announcing.add(task)
        task.add_done_callback(self._announcing.discard)

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _want(self, line: _Line, number: int) -> None:
        announced = line.announced.get(number)
        slot = line.slots.get(number)
        if slot is not None and slot.expiry is not None:
            slot.expiry.cancel()
            slot.expiry, slot.state = None, ModelState.READY
        is_known = slot is not None and (
            announced is None or slot.announcement.artifact == announced.artifact
        )
        if is_known or announced is None or announced.state is not VersionState.APPROVED:
            return
        if slot is not None and slot.task is not None:
            slot.task.cancel()
        slot = line.slots[number] = _Slot(announced)
        slot.task = asyncio.create_task(self._load(slot), name=f"load version {number}")
        slot.task.add_done_callback(lambda task: self._loaded(slot, task))

    def _promote(self, line: _Line) -> None:
        if line.rollout is None or line.rollout.champion is None:
            line.champion = None
            return
        slot = line.slots.get(line.rollout.champion)
        if slot is not None and slot.is_answering:
            line.champion = slot.model

    def _retire(self, line: _Line, number: int) -> None:
        slot = line.slots[number]
        if slot.state is ModelState.DRAINING:
            return
        if slot.state is not ModelState.READY:
            if slot.task is not None:
                slot.task.cancel()
            del line.slots[number]
            return
        slot.state = ModelState.DRAINING

        def drop() -> None:
            if line.slots.get(number) is slot:
                del line.slots[number]

        slot.expiry = asyncio.get_running_loop().call_later(self._drain_seconds, drop)

    async def _load(self, slot: _Slot) -> None:
        """Load one version, however long its file stays away."""
        wait = FIRST_RETRY_SECONDS
        while slot.model is None:
            try:
                slot.model = await self._try(slot.announcement)
            except (ModelRefused, ArtifactRefused):
                raise
            except (HomeostatError, OSError) as error:
                self._unavailable(slot, error)
                await asyncio.sleep(wait)
                wait = min(wait * 2, LAST_RETRY_SECONDS)

    async def _try(self, version: ModelVersion) -> LoadedModel:
        started = time.monotonic()
        file = await self._fetch(version)  # a file that stays away keeps no other version waiting
        async with self._one_at_a_time:
            await self._probe(version, file.path)
            scorer = await asyncio.to_thread(load, version, file.content)
        logger.info(
            "model loaded",
            extra={
                "pipeline": version.pipeline,
                "version": version.version,
                "seconds": round(time.monotonic() - started, 3),
            },
        )
        return LoadedModel(version, scorer)

    def _unavailable(self, slot: _Slot, error: HomeostatError | OSError) -> None:
        slot.state, slot.reason = ModelState.UNAVAILABLE, str(error)
        metrics.model_load(slot.announcement.pipeline, "unavailable")
        logger.warning("model unavailable, trying again", extra=_about(slot))
        self._reconcile_soon()

    def _loaded(self, slot: _Slot, task: asyncio.Task[None]) -> None:
        """The end of a load: the version answers, or is quarantined whatever went wrong."""
        slot.task = None
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            slot.state, slot.reason = ModelState.READY, ""
            metrics.model_load(slot.announcement.pipeline, "loaded")
        else:
            slot.state, slot.reason = ModelState.QUARANTINED, str(error)
            metrics.model_load(slot.announcement.pipeline, "quarantined")
            is_expected = isinstance(error, HomeostatError)
            logger.error(
                "model quarantined", extra=_about(slot), exc_info=None if is_expected else error
            )
        self._reconcile_soon()


def _about(slot: _Slot) -> dict[str, object]:
    version = slot.announcement
    return {"pipeline": version.pipeline, "version": version.version, "reason": slot.reason}
