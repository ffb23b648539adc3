"""One auditor for each known pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from homeostat.common.errors import NotFound, unknown_pipeline
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import Snapshot
from homeostat.features.audit.auditor import Auditor, FeaturesOf
from homeostat.features.settings import Settings


class Auditors:
    """Starts an auditor when its pipeline appears, anew when the definition changes."""

    def __init__(
        self, settings: Settings, is_informed: Callable[[], bool], features_of: FeaturesOf
    ) -> None:
        self._settings = settings
        self._is_informed = is_informed
        self._features_of = features_of
        self._auditors: dict[str, Auditor] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    def follow(self, name: str, snapshot: Snapshot | None) -> None:
        """Take note of a pipeline's newest snapshot; ``None``: it was removed."""
        if self._settings.audit_share == 0:
            return
        view = None if snapshot is None else FeatureView(snapshot.pipeline)
        present = self._auditors.get(name)
        if present is not None:
            if view is not None and view.definition_hash == present.view.definition_hash:
                return
            del self._auditors[name]
            task = asyncio.create_task(present.stop())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        if view is not None:
            self._auditors[name] = Auditor(view, self._settings, self._features_of)
            self._auditors[name].start()

    def of(self, pipeline: str) -> Auditor:
        """
        Raises:
            NotFound: no such pipeline was applied, or none is audited.
            TransientError: nothing has been heard of pipelines yet.
        """
        if self._settings.audit_share == 0:
            raise NotFound("the audit is turned off", fix="set FEATURES_AUDIT_SHARE above 0")
        if pipeline not in self._auditors:
            raise unknown_pipeline(pipeline, self._auditors, is_informed=self._is_informed())
        return self._auditors[pipeline]

    async def stop(self) -> None:
        await asyncio.gather(*(each.stop() for each in self._auditors.values()), *self._leaving)
