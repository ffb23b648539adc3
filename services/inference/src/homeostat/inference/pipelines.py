"""The pipelines that are served: everything a request needs of one, resolved once per snapshot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from homeostat.common.clock import PipelineClock, SystemClock
from homeostat.common.errors import TransientError, unknown_pipeline
from homeostat.common.events import EventContract
from homeostat.common.feature_store.definitions import Definition, split_key
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import Pipeline, Snapshot
from homeostat.inference import metrics
from homeostat.inference.metrics import PipelineMetrics


@dataclass(eq=False)
class ServedPipeline:
    """One pipeline. ``views`` by definition hash: the newest, and those that models may pin."""

    pipeline: Pipeline
    contract: EventContract
    views: dict[str, FeatureView]
    clock: PipelineClock
    metrics: PipelineMetrics = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = metrics.of(self.pipeline.name)

    @property
    def name(self) -> str:
        return self.pipeline.name

    def view(self, definition_hash: str) -> FeatureView:
        """The view with which a model was trained.

        Raises:
            TransientError: the pipeline's features have changed since.
        """
        view = self.views.get(definition_hash)
        if view is None:
            raise TransientError(
                f"the model was trained on definition {definition_hash[:8]} of the features of "
                f"{self.name!r}, served are {', '.join(name[:8] for name in self.views)}",
                fix="retrain, or send ready vectors",
            )
        return view


class Pipelines:
    """Follows the topics ``pipelines`` and ``definitions``."""

    def __init__(
        self,
        *,
        pii_key: bytes = b"",
        on_change: Callable[[str, ServedPipeline | None], None] = lambda _name, _served: None,
    ) -> None:
        self._pii_key = pii_key
        self._on_change = on_change
        self._served: dict[str, ServedPipeline] = {}
        self._views: dict[str, dict[str, FeatureView]] = defaultdict(dict)  # and by hash

    def __iter__(self) -> Iterator[ServedPipeline]:
        return iter([*self._served.values()])

    def follow(self, name: str, snapshot: Snapshot | None) -> None:
        """A record of ``pipelines``."""
        old = self._served.pop(name, None)
        served = None
        if snapshot is not None:
            served = self._served[name] = self._serve(snapshot.pipeline, old)
        self._on_change(name, served)

    def follow_definition(self, key: str, definition: Definition | None) -> None:
        """A record of ``definitions``."""
        name, digest = split_key(key)
        if definition is None:
            self._views[name].pop(digest, None)
        else:
            self._views[name][digest] = definition.view
        if (served := self._served.get(name)) is not None:
            served.views = self._views_of(served.pipeline)

    def get(self, name: str) -> ServedPipeline:
        """A pipeline by name.

        Raises:
            NotFound: no snapshot of it has been published.
        """
        served = self._served.get(name)
        if served is None:
            raise unknown_pipeline(name, self._served, is_informed=True)
        return served

    def _serve(self, pipeline: Pipeline, old: ServedPipeline | None) -> ServedPipeline:
        return ServedPipeline(
            pipeline=pipeline,
            contract=EventContract(pipeline, pii_key=self._pii_key),
            views=self._views_of(pipeline),
            clock=old.clock if old is not None else PipelineClock(SystemClock()),
        )

    def _views_of(self, pipeline: Pipeline) -> dict[str, FeatureView]:
        newest = FeatureView(pipeline)
        return self._views[pipeline.name] | {newest.definition_hash: newest}
