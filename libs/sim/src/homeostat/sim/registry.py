"""Trained models in memory: announcements, files, and what answers once it is loaded."""

from __future__ import annotations

from homeostat.common.errors import NotFound, TransientError
from homeostat.common.schemas.models import ModelVersion
from homeostat.common.schemas.rollouts import RolloutSnapshot
from homeostat.inference.models import LoadedModel
from homeostat.inference.scorer import load
from homeostat.trainer.training import Champion


class Registry:
    """Numbers versions from 1, keeps their files, loads each when it is first asked for."""

    def __init__(self) -> None:
        self._versions: dict[int, Champion] = {}
        self._loaded: dict[int, LoadedModel] = {}

    @property
    def next_version(self) -> int:
        return len(self._versions) + 1

    def add(self, version: ModelVersion, content: bytes) -> None:
        self._versions[version.version] = Champion(version, content)

    def file(self, version: int) -> Champion:
        """A version with its file, as training takes the champion."""
        return self._versions[version]

    def loaded(self, version: int) -> LoadedModel:
        """A version that answers, checked as inference checks it.

        Raises:
            ModelRefused: it does not reproduce its golden scores.
            NotFound: no such version.
        """
        if version not in self._versions:
            raise NotFound(f"there is no version {version}")
        if version not in self._loaded:
            kept = self._versions[version]
            self._loaded[version] = LoadedModel(kept.version, load(kept.version, kept.content))
        return self._loaded[version]


class Serving:
    """The models that a rollout names, as scoring asks for them."""

    def __init__(self, registry: Registry, rollout: RolloutSnapshot) -> None:
        self._registry = registry
        self._rollout = rollout

    def champion(self, pipeline: str) -> LoadedModel:
        if self._rollout.champion is None:
            raise TransientError(f"{pipeline!r} has no champion yet")
        return self._registry.loaded(self._rollout.champion)

    def get(self, pipeline: str, version: int) -> LoadedModel:  # noqa: ARG002 - one pipeline
        return self._registry.loaded(version)
