"""Drives a run from queued to its end; each step is stored before the next one begins.

Killed anywhere, a run goes on from the last stored step: table versions are kept, the search is
not repeated, and version number, file and announcement come into being in one transaction.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from homeostat.common import artifacts
from homeostat.common.clock import Clock, to_millis
from homeostat.common.errors import HomeostatError, TransientError
from homeostat.common.schemas.models import Artifact, ModelVersion
from homeostat.trainer import jobs, metrics
from homeostat.trainer.announcer import Announcer
from homeostat.trainer.governance import Verdict
from homeostat.trainer.jobs import JobFailed
from homeostat.trainer.messages import (
    Candidate,
    HasJudged,
    HasRefused,
    HasTuned,
    Loaded,
    Message,
    Request,
    Tuned,
)
from homeostat.trainer.offline_store import OfflineStore
from homeostat.trainer.registry import artifact_uri
from homeostat.trainer.settings import Settings
from homeostat.trainer.store import Run, RunState, Store

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.2
LAST_RETRY_SECONDS = 5.0
JUDGED = (RunState.REGISTERING, RunState.REFUSED)
OVERHEAD = timedelta(seconds=120)  # of a job beside its search: loading, two fits, judging


class Runner:
    """``champion_of`` names the version that serves a pipeline now, ``None`` if there is none."""

    def __init__(
        self,
        store: Store,
        announcer: Announcer,
        offline_store: OfflineStore,
        settings: Settings,
        clock: Clock,
        champion_of: Callable[[str], int | None],
    ) -> None:
        self._store = store
        self._announcer = announcer
        self._offline_store = offline_store
        self._settings = settings
        self._clock = clock
        self._champion_of = champion_of

    async def drive(self, run: Run) -> None:
        """Take a run to its end, from wherever it stands.

        Raises:
            TransientError: a dependency is away; the run stands, call again.
        """
        logger.info("run goes on", extra={"run": run.id, "state": run.state})
        try:
            if run.state is not RunState.REGISTERING:
                run = await self._attempt(run)
                run = await self._with_tables(run)
                run = await self._compute(run)
            if run.state is RunState.REGISTERING:
                await self._announcer.flush(run.pipeline)
                run = await self._move(run, RunState.DONE)
        except TransientError:
            raise
        except HomeostatError as error:
            run = await self._fail(run, str(error))
        await self._announcer.flush(run.pipeline)

    async def _attempt(self, run: Run) -> Run:
        """Count the attempts, so that a run that takes the service with it ends one day."""
        if run.attempts >= self._settings.max_attempts:
            raise JobFailed(f"interrupted {run.attempts} times, last while {run.state}")
        state = RunState.DATASET if run.state is RunState.QUEUED else run.state
        return await self._move(run, state, attempts=run.attempts + 1)

    async def _with_tables(self, run: Run) -> Run:
        if run.table_versions is not None:
            return run
        started = time.monotonic()
        versions = await self._commit(run.pipeline)
        metrics.STEP_SECONDS.labels("commit").observe(time.monotonic() - started)
        champion = self._champion_of(run.pipeline)
        return await self._move(run, run.state, table_versions=versions, champion=champion)

    async def _commit(self, pipeline: str) -> dict[str, int]:
        patience = self._settings.features_patience.total_seconds()
        deadline = self._clock.monotonic() + patience
        wait = FIRST_RETRY_SECONDS
        while True:
            try:
                return await self._offline_store.commit(pipeline)
            except TransientError as error:
                if self._clock.monotonic() > deadline:
                    raise JobFailed(f"no training set within {patience:g} s: {error}") from error
                logger.warning("waiting for the features service", extra={"error": error.detail})
                await asyncio.sleep(wait)
                wait = min(wait * 2, LAST_RETRY_SECONDS)

    async def _compute(self, run: Run) -> Run:
        """The child process, and what comes of it."""
        self._settings.state_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._settings.state_dir, prefix="run-") as folder:
            request = await self._request(run, Path(folder))
            here = run
            since = time.monotonic()

            async def hear(message: Message) -> None:
                nonlocal here, since
                step = here.state
                here = await self._heard(here, message, request)
                if here.state is not step:
                    metrics.STEP_SECONDS.labels(step).observe(time.monotonic() - since)
                    since = time.monotonic()

            try:
                await jobs.run(request, time_limit=self._time_limit(run), on_message=hear)
            except JobFailed:
                if here.state not in JUDGED:  # however it ended after it had told its judgement
                    raise
        if here.state not in JUDGED:
            raise JobFailed("the training process ended without a judgement")
        return here

    def _time_limit(self, run: Run) -> timedelta:
        budget = timedelta(seconds=run.snapshot.pipeline.training.budget.seconds)
        return min(self._settings.time_limit, 3 * budget + OVERHEAD)

    async def _request(self, run: Run, folder: Path) -> Request:
        champion, champion_file = None, None
        if run.champion is not None:
            champion, content = await self._champion(run.pipeline, run.champion)
            champion_file = folder / "champion.json"
            await asyncio.to_thread(champion_file.write_bytes, content)
        return Request(
            snapshot=msgspec.Raw(run.snapshot.encode()),
            table_versions=run.table_versions or {},
            as_of=run.triggered_at,
            offline_store=str(self._settings.offline_store_path.absolute()),
            model_file=str(folder / "model.json"),
            threads=self._settings.threads,
            memory_limit_bytes=self._settings.memory_limit_bytes,
            champion=champion,
            champion_file=str(champion_file) if champion_file else None,
            tuned=msgspec.convert(run.tuned, Tuned) if run.tuned else None,
        )

    async def _champion(self, pipeline: str, number: int) -> tuple[ModelVersion, bytes]:
        async with self._store.transaction() as transaction:
            registered = await transaction.version(pipeline, number)
            if registered is not None:
                version = registered.announcement
                content = await transaction.artifact(version.artifact.sha256)
                if content is not None:
                    return version, content
        raise HomeostatError(
            f"the champion, version {number}, is not among the trainer's versions",
            fix="was the trainer's database replaced?",
        )

    async def _heard(self, run: Run, message: Message, request: Request) -> Run:
        match message:
            case Loaded():
                state = RunState.JUDGING if run.tuned else RunState.TUNING
                return await self._move(run, state)
            case HasTuned(tuned):
                return await self._move(run, RunState.JUDGING, tuned=msgspec.to_builtins(tuned))
            case HasRefused(reason):
                return await self._refuse(run, reason, {})
            case HasJudged(judged):
                summary = msgspec.to_builtins(msgspec.structs.replace(judged, candidate=None))
                if judged.candidate is None:
                    return await self._refuse(run, judged.verdict.reason, summary)
                content = await asyncio.to_thread(Path(request.model_file).read_bytes)
                return await self._register(run, judged.candidate, judged.verdict, summary, content)

    async def _register(
        self,
        run: Run,
        candidate: Candidate,
        verdict: Verdict,
        judged: dict[str, Any],
        content: bytes,
    ) -> Run:
        """Number, sign and store a version, all or nothing."""
        if self._settings.signing_key_file is None:
            raise HomeostatError("nothing to sign models with", fix="set MODEL_SIGNING_KEY_FILE")
        key = await asyncio.to_thread(artifacts.load_private_key, self._settings.signing_key_file)
        pipeline = run.snapshot.pipeline
        cost = pipeline.training.cost // timedelta(milliseconds=1)
        now = to_millis(self._clock.now())
        async with self._store.transaction() as transaction:
            await transaction.memory(run.pipeline)  # locks: numbers are given one at a time
            version = artifacts.sign(
                ModelVersion(
                    pipeline=run.pipeline,
                    version=await transaction.next_version(run.pipeline),
                    state=verdict.state,
                    created_at=run.triggered_at,
                    # Live, the time that training took has passed; a replayed clock stood still.
                    available_at=now if run.clock is None else run.triggered_at + cost,
                    cause=f"{run.trigger.kind}: {run.trigger.message}",
                    artifact=Artifact(
                        sha256=candidate.sha256,
                        size_bytes=candidate.size_bytes,
                        uri=artifact_uri(run.pipeline, candidate.sha256),
                    ),
                    features=candidate.features,
                    definition_hash=candidate.definition_hash,
                    threshold=candidate.threshold,
                    golden=candidate.golden,
                    reference=candidate.reference,
                    gates=verdict.gates,
                    training=candidate.training
                    | {"run": run.id, "pipeline_hash": run.snapshot.content_hash}
                    | {f"table:{name}": str(at) for name, at in (run.table_versions or {}).items()},
                ),
                key,
            )
            if not await transaction.move(
                run, RunState.REGISTERING, judged=judged, version=version.version
            ):
                raise Superseded(run.id)
            await transaction.add_version(run.id, version, content)
            await transaction.audit(
                run.pipeline,
                verdict.state.value,
                at=run.triggered_at,
                evidence={
                    "run": run.id,
                    "version": version.version,
                    "sha256": candidate.sha256,
                    "cause": version.cause,
                    **judged,
                },
            )
        logger.info(
            "version registered", extra={"pipeline": run.pipeline, "version": version.version}
        )
        return await self._reload(run)

    async def _refuse(self, run: Run, reason: str, judged: dict[str, Any]) -> Run:
        return await self._end(run, RunState.REFUSED, reason, judged=judged)

    async def _fail(self, run: Run, reason: str) -> Run:
        return await self._end(await self._reload(run), RunState.FAILED, reason)

    async def _end(self, run: Run, state: RunState, reason: str, **columns: Any) -> Run:
        async with self._store.transaction() as transaction:
            if not await transaction.move(run, state, reason=reason, **columns):
                raise Superseded(run.id)
            await transaction.audit(
                run.pipeline,
                f"run_{state}",
                at=run.triggered_at,
                evidence={"run": run.id, "cause": run.trigger.kind, "reason": reason, **columns},
            )
        metrics.ENDED.labels(run.pipeline, state).inc()
        logger.warning("run ended", extra={"run": run.id, "state": state, "reason": reason})
        return await self._reload(run)

    async def _move(self, run: Run, state: RunState, **columns: Any) -> Run:
        async with self._store.transaction() as transaction:
            if not await transaction.move(run, state, **columns):
                raise Superseded(run.id)
        if state is RunState.DONE:
            metrics.ENDED.labels(run.pipeline, state).inc()
        return await self._reload(run)

    async def _reload(self, run: Run) -> Run:
        async with self._store.transaction() as transaction:
            found = await transaction.run(run.pipeline, run.id)
        if found is None:
            raise Superseded(run.id)
        return found


class Superseded(TransientError):
    """Another replica has moved the run meanwhile; this one lets go of it."""

    code = "SUPERSEDED"

    def __init__(self, run_id: str) -> None:
        super().__init__(f"run {run_id} was moved by another replica")
