"""MLflow's model registry: a mirror of our versions for people, never waited for.

The truth is in Postgres and on ``model-versions``. Here each version gets a run (parameters,
metrics, tags), native files (``model.json``, ``announcement.json``) under an address made of their
digest, and a registered version of the model named after the pipeline; aliases follow the rollouts.
Every step may be repeated after a failure anywhere.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from homeostat.common.errors import TransientError
from homeostat.common.schemas.models import ModelVersion
from homeostat.common.schemas.rollouts import RolloutSnapshot
from homeostat.trainer import metrics
from homeostat.trainer.store import Registered, Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

T = TypeVar("T")

CHALLENGER = "challenger"
CHAMPION = "champion"
VERSION_TAG = "homeostat.version"
RUN_FOLDER = "model"
CALL_SECONDS = 60
PARAMETER_CHARACTERS = 500


class RegistryAway(TransientError):
    """MLflow is down, slow or refuses; tried again later."""


def artifact_uri(pipeline: str, sha256: str) -> str:
    """Where MLflow will have a model file: known before it has it."""
    return f"{_folder(pipeline, sha256)}/model.json"


def _folder(pipeline: str, sha256: str) -> str:
    return f"mlflow-artifacts:/homeostat/{pipeline}/{sha256}"


class Registry:
    """``rollouts`` gives the champions that aliases mirror."""

    def __init__(
        self,
        store: Store,
        tracking_uri: str,
        rollouts: Callable[[], Mapping[str, RolloutSnapshot]],
    ) -> None:
        self._store = store
        self._tracking_uri = tracking_uri
        self._rollouts = rollouts
        self._mirrored: dict[str, int] = {}
        self._client: MlflowClient | None = None

    async def follow(self, *, interval: timedelta) -> None:
        """Bring MLflow up to date for ever."""
        while True:
            try:
                await self.catch_up()
            except TransientError as error:
                logger.warning("registration waits", extra={"error": error.detail})
            await asyncio.sleep(interval.total_seconds())

    async def catch_up(self) -> None:
        """Register what MLflow does not know, then set the aliases.

        Raises:
            TransientError: MLflow or Postgres is away; what is done stays done.
        """
        async with self._store.transaction() as transaction:
            waiting = await transaction.unregistered()
        metrics.UNREGISTERED.set(len(waiting))
        for registered in waiting:
            await self._register(registered.announcement)
        metrics.UNREGISTERED.set(0)
        for pipeline, rollout in self._rollouts().items():
            if rollout.champion is not None and self._mirrored.get(pipeline) != rollout.champion:
                await self._mirror(pipeline, rollout.champion)

    async def _register(self, version: ModelVersion) -> None:
        async with self._store.transaction() as transaction:
            content = await transaction.artifact(version.artifact.sha256)
        if content is None:
            raise RuntimeError("a version without its file breaks the schema's reference")
        run, mlflow_version = await self._call(lambda client: _register(client, version, content))
        async with self._store.transaction() as transaction:
            await transaction.registered_in_mlflow(version, run=run, mlflow_version=mlflow_version)
        logger.info(
            "version in MLflow",
            extra={"pipeline": version.pipeline, "version": version.version, "run": run},
        )

    async def _mirror(self, pipeline: str, champion: int) -> None:
        async with self._store.transaction() as transaction:
            registered: Registered | None = await transaction.version(pipeline, champion)
        if registered is None or registered.mlflow_version is None:
            return
        name = registered.mlflow_version
        await self._call(lambda client: client.set_registered_model_alias(pipeline, CHAMPION, name))
        self._mirrored[pipeline] = champion

    async def _call(self, work: Callable[[MlflowClient], T]) -> T:
        """Run blocking client code in a thread, and every failure of it into one error."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await asyncio.to_thread(self._work, work)
        except TimeoutError as error:
            raise RegistryAway(f"MLflow did not answer within {CALL_SECONDS} s") from error

    def _work(self, work: Callable[[MlflowClient], T]) -> T:
        # Imported here: MLflow takes seconds to import, and nothing else waits for it.
        import requests  # noqa: PLC0415
        from mlflow import MlflowClient  # noqa: PLC0415
        from mlflow.exceptions import MlflowException  # noqa: PLC0415

        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        try:
            if self._client is None:
                self._client = MlflowClient(self._tracking_uri)
            return work(self._client)
        except (MlflowException, requests.RequestException, OSError) as error:
            raise RegistryAway(f"MLflow is away: {error}") from error


def _register(client: MlflowClient, version: ModelVersion, content: bytes) -> tuple[str, str]:
    """The run and the name of the version in MLflow; finds what an attempt before has left."""
    pipeline, tags = version.pipeline, {VERSION_TAG: str(version.version)}
    run = _run(client, version, tags)
    _upload(client, version, content, run=run)
    _ensure_model(client, pipeline)
    known = [
        found
        for found in client.search_model_versions(f"name = '{pipeline}'")
        if found.tags.get(VERSION_TAG) == tags[VERSION_TAG]
    ]
    registered = (
        known[0]
        if known
        else client.create_model_version(
            pipeline,
            source=f"runs:/{run}/{RUN_FOLDER}",
            run_id=run,
            tags={**tags, "homeostat.sha256": version.artifact.sha256},
            description=version.cause,
        )
    )
    name = str(registered.version)
    client.set_registered_model_alias(pipeline, CHALLENGER, name)
    return run, name


def _run(client: MlflowClient, version: ModelVersion, tags: dict[str, str]) -> str:
    experiment = client.get_experiment_by_name(f"homeostat/{version.pipeline}")
    experiment_id = (
        experiment.experiment_id
        if experiment is not None
        else client.create_experiment(f"homeostat/{version.pipeline}")
    )
    found = client.search_runs(
        [experiment_id], f"tags.`{VERSION_TAG}` = '{version.version}'", max_results=1
    )
    if found:
        run_id = str(found[0].info.run_id)
    else:
        run = client.create_run(
            experiment_id, tags=tags, run_name=f"{version.pipeline} version {version.version}"
        )
        run_id = str(run.info.run_id)
    for name, value in {**version.training, "threshold": repr(version.threshold)}.items():
        client.log_param(run_id, name.replace(":", "."), value[:PARAMETER_CHARACTERS])
    for name, measured in version.reference.metrics.items():
        client.log_metric(run_id, name, measured)
    for gate in version.gates:
        client.set_tag(run_id, f"homeostat.gate.{gate.measure}", f"{gate.value} ({gate.bound})")
    client.set_terminated(run_id)
    return run_id


def _upload(client: MlflowClient, version: ModelVersion, content: bytes, *, run: str) -> None:
    """Put the files where they were announced to be, and into the run.

    MLflow registers only what lies inside a run, whose address nobody knew at the announcement.
    """
    from mlflow.store.artifact.artifact_repository_registry import (  # noqa: PLC0415 - see _work
        get_artifact_repository,
    )

    folder = _folder(version.pipeline, version.artifact.sha256)
    repository = get_artifact_repository(folder, tracking_uri=client.tracking_uri)
    with tempfile.TemporaryDirectory() as temporary:
        for name, value in (
            ("model.json", content),
            ("announcement.json", msgspec.json.encode(version)),
        ):
            path = Path(temporary) / name
            path.write_bytes(value)
            repository.log_artifact(str(path))  # type: ignore[no-untyped-call] # MLflow's
            client.log_artifact(run, str(path), RUN_FOLDER)


def _ensure_model(client: MlflowClient, name: str) -> None:
    if not client.search_registered_models(f"name = '{name}'", max_results=1):
        client.create_registered_model(name)
