"""Where model files come from: local disk, then Redis, then MLflow. Content-addressed, so any copy
will do.

Nothing leaves here unverified. A copy whose digest is wrong is passed over (and removed, if it is
our own); only when the right bytes are announced with a wrong signature is the version itself
refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from homeostat.common import artifacts
from homeostat.common.artifacts import ArtifactRefused
from homeostat.common.errors import TransientError
from homeostat.common.schemas.models import ModelVersion
from homeostat.inference import metrics

logger = logging.getLogger(__name__)

KEPT_FILES = 32
REGISTRY_THREADS = 2


@dataclass(frozen=True)
class VerifiedFile:
    """Bytes that the trainer has signed, and where they lie on local disk."""

    path: Path
    content: bytes


class ArtifactStore:
    def __init__(
        self,
        directory: Path,
        *,
        redis: Redis,
        verify_key: Path,
        registry_timeout: timedelta = timedelta(seconds=30),
    ) -> None:
        self._directory = directory
        self._redis = redis
        self._verify_key = verify_key
        self._registry_timeout = registry_timeout.total_seconds()
        # Threads of their own: a registry that is away must not use up those that everything else
        # needs, the reading of a file from local disk first of all.
        self._downloads = ThreadPoolExecutor(REGISTRY_THREADS, thread_name_prefix="mlflow")

    async def fetch(self, version: ModelVersion) -> VerifiedFile:
        """A version's file, from the nearest place that has it.

        Raises:
            ArtifactRefused: every copy found is damaged, or the signature does not match.
            TransientError: no copy can be reached now.
        """
        key = await asyncio.to_thread(artifacts.load_public_key, self._verify_key)
        path = self._directory / version.artifact.sha256
        content, source = await self._find(version, path)
        artifacts.verify(version, content, key)
        if source != "disk":
            await asyncio.to_thread(self._keep, path, content)
        return VerifiedFile(path, content)

    async def _find(self, version: ModelVersion, path: Path) -> tuple[bytes, str]:
        damaged = []
        for source, read in (
            ("disk", partial(self._from_disk, path)),
            ("redis", partial(self._from_redis, version)),
            ("mlflow", partial(self._from_registry, version)),
        ):
            content = await read()
            if content is None:
                continue
            if hashlib.sha256(content).hexdigest() == version.artifact.sha256:
                return content, source
            damaged.append(source)
            metrics.artifact_damaged(version.pipeline, source)
            logger.error(
                "a copy of a model file is damaged",
                extra={"pipeline": version.pipeline, "version": version.version, "source": source},
            )
        name = f"{version.pipeline} version {version.version}"
        if damaged:
            raise ArtifactRefused(f"{name}: every copy is damaged ({', '.join(damaged)})")
        raise TransientError(
            f"{name}: the model file is neither on disk, nor in Redis, nor in MLflow",
            fix=f"is {version.artifact.uri} reachable?",
        )

    async def _from_disk(self, path: Path) -> bytes | None:
        try:
            return await asyncio.to_thread(path.read_bytes)
        except OSError:
            return None

    async def _from_redis(self, version: ModelVersion) -> bytes | None:
        try:
            content = await self._redis.get(artifacts.redis_key(version.artifact.sha256))
        except (RedisError, OSError) as error:
            logger.warning("no model file from Redis", extra={"error": repr(error)})
            return None
        return content if isinstance(content, bytes) else None

    async def _from_registry(self, version: ModelVersion) -> bytes | None:
        try:
            async with asyncio.timeout(self._registry_timeout):
                return await asyncio.get_running_loop().run_in_executor(
                    self._downloads, _download, version.artifact.uri
                )
        except (OSError, TimeoutError, RegistryError) as error:
            logger.warning("no model file from MLflow", extra={"error": repr(error)})
            return None

    def _keep(self, path: Path, content: bytes) -> None:
        """Put verified bytes in place whole or not at all, and forget the oldest files."""
        self._directory.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self._directory, prefix=".")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        files = sorted(self._directory.glob("[!.]*"), key=lambda file: -file.stat().st_mtime)
        for old in files[KEPT_FILES:]:
            old.unlink(missing_ok=True)


class RegistryError(Exception):
    """MLflow could not give the file."""


def _download(uri: str) -> bytes:
    # Imported here: MLflow takes over a second to import, and is the last resort.
    import mlflow.artifacts  # noqa: PLC0415
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder)
        except MlflowException as error:
            raise RegistryError(str(error)) from error
        return Path(path).read_bytes()
