"""One leader for each pipeline: it alone consumes, trains and announces; others stand by."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping

from aiokafka.errors import KafkaError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from homeostat.common import kafka, topics
from homeostat.common.clock import Clock
from homeostat.common.errors import TransientError
from homeostat.common.pipeline import Snapshot
from homeostat.common.schemas.rollouts import RolloutSnapshot
from homeostat.trainer.announcer import Announcer
from homeostat.trainer.consumer import Consumer
from homeostat.trainer.runner import Runner
from homeostat.trainer.store import Leadership, Store

logger = logging.getLogger(__name__)

STANDBY_SECONDS = 2.0
CONFIRM_SECONDS = 2.0
IDLE_SECONDS = 5.0  # a run that another replica has queued waits no longer than this
KEEP_SECONDS = 30.0
FIRST_BACKOFF_SECONDS = 0.2
LAST_BACKOFF_SECONDS = 5.0
CRASHED = 70

AWAY = (TransientError, KafkaError, DBAPIError, PoolTimeout, OSError, TimeoutError)


class Leader:
    """Follows the pipelines that exist: ``follow`` starts one, ``forget`` stops it."""

    def __init__(
        self,
        store: Store,
        runner: Runner,
        announcer: Announcer,
        *,
        pipelines: Mapping[str, Snapshot],
        rollouts: kafka.CompactedView[RolloutSnapshot],
        bootstrap_servers: str,
        wall: Clock,
    ) -> None:
        self._store = store
        self._runner = runner
        self._announcer = announcer
        self._pipelines = pipelines
        self._rollouts = rollouts
        self._bootstrap_servers = bootstrap_servers
        self._wall = wall
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wakes: dict[str, asyncio.Event] = {}
        self._one_at_a_time = asyncio.Semaphore(1)  # a run takes a core and gigabytes

    def follow(self, pipeline: str) -> None:
        if pipeline not in self._tasks:
            self._wakes[pipeline] = asyncio.Event()
            task = asyncio.create_task(self._lead(pipeline), name=f"lead {pipeline}")
            task.add_done_callback(_crash)
            self._tasks[pipeline] = task

    def forget(self, pipeline: str) -> None:
        if task := self._tasks.pop(pipeline, None):
            task.cancel()

    def wake(self, pipeline: str) -> None:
        """There is something to do: do not wait for the next look."""
        if pipeline in self._wakes:
            self._wakes[pipeline].set()

    async def stop(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _lead(self, pipeline: str) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            is_away = False
            try:
                async with self._store.leading(pipeline) as leadership:
                    if leadership is not None:
                        await self._serve(pipeline, leadership)
            except* AWAY as errors:
                is_away = True
                logger.warning(
                    "trainer waits for a dependency",
                    extra={"pipeline": pipeline, "errors": [repr(e) for e in errors.exceptions]},
                )
            backoff = min(backoff * 2, LAST_BACKOFF_SECONDS) if is_away else STANDBY_SECONDS
            await asyncio.sleep(backoff)

    async def _serve(self, pipeline: str, leadership: Leadership) -> None:
        snapshot = self._pipelines[pipeline]
        await kafka.ensure_topics(self._bootstrap_servers, topics.of_pipeline(snapshot.pipeline))
        consumer = Consumer(
            self._store,
            lambda: self._pipelines[pipeline],
            bootstrap_servers=self._bootstrap_servers,
            wall=self._wall,
            on_run=self._wakes[pipeline].set,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(consumer.consume(), name=f"consume {pipeline}")
            group.create_task(self._work(pipeline), name=f"work {pipeline}")
            group.create_task(_confirm(leadership), name=f"confirm {pipeline}")

    async def _work(self, pipeline: str) -> None:
        """Drive what is queued or was interrupted; keep what is decided told."""
        # Without the rollouts nobody knows which version a challenger has to beat.
        await self._rollouts.caught_up()
        wake = self._wakes[pipeline]
        kept = 0.0
        while True:
            wake.clear()
            await self._announcer.flush(pipeline)
            if time.monotonic() - kept > KEEP_SECONDS:
                await self._keep_artifacts(pipeline)
                kept = time.monotonic()
            async with self._store.transaction() as transaction:
                run = await transaction.active_run(pipeline)
            if run is not None:
                async with self._one_at_a_time:
                    await self._runner.drive(run)
                continue
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    await wake.wait()
            except TimeoutError:
                continue

    async def _keep_artifacts(self, pipeline: str) -> None:
        """Redis may have been wiped: what serves must be there for the next replica."""
        rollout = self._rollouts.values.get(pipeline)
        numbers = {rollout.champion, rollout.challenger} if rollout else set()
        for number in numbers - {None}:
            async with self._store.transaction() as transaction:
                registered = await transaction.version(pipeline, number or 0)
            if registered is not None:
                await self._announcer.keep_artifact(registered.announcement.artifact.sha256)


async def _confirm(leadership: Leadership) -> None:
    while True:
        await asyncio.sleep(CONFIRM_SECONDS)
        await leadership.confirm()


def _crash(task: asyncio.Task[None]) -> None:
    """A leader ends when it is told to, or by a defect: then the process is to be started anew."""
    if task.cancelled() or (error := task.exception()) is None:
        return
    logger.critical("leader crashed", exc_info=error, extra={"task": task.get_name()})
    os._exit(CRASHED)
