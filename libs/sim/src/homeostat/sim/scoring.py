"""The inference service on its stream path: vectors in, ledger rows out."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from homeostat.common import topics
from homeostat.common.schemas.rollouts import RolloutSnapshot
from homeostat.common.schemas.vectors import VectorBatch
from homeostat.inference.lanes import Assigner, lanes, score_lane
from homeostat.sim.log import Record
from homeostat.sim.process import Process, World
from homeostat.sim.registry import Registry, Serving

_decode_rollout = msgspec.json.Decoder(RolloutSnapshot).decode


class Scoring(Process):
    """Scores what is fresh enough with the models that the rollout names."""

    def __init__(self, world: World, registry: Registry) -> None:
        name = world.pipeline.name
        super().__init__(
            world, {topics.ROLLOUTS.of(): self._follow, topics.FEATURES.of(name): self._score}
        )
        self._registry = registry
        self._predictions = topics.PREDICTIONS.of(name)
        self._assigner: Assigner | None = None

    def _follow(self, records: Sequence[Record]) -> None:
        rollout = _decode_rollout(records[-1].value)
        self._assigner = (self._assigner or Assigner(rollout)).follow(rollout)

    def _score(self, records: Sequence[Record]) -> None:
        for record in records:
            vectors = VectorBatch.decode(record.value)
            fresh = vectors.take(np.flatnonzero(vectors.is_scored))
            if self._assigner is None:
                self.world.counts["unscored"] += len(fresh)
            elif len(fresh):
                self._score_fresh(fresh, self._assigner)

    def _score_fresh(self, vectors: VectorBatch, assigner: Assigner) -> None:
        models = Serving(self._registry, assigner.rollout)
        for lane in lanes(models, assigner, vectors.units, is_primary=True):
            batch = score_lane(
                vectors,
                lane,
                assigner.rollout,
                view=self.world.view,
                traceparents=vectors.traceparents,
                at=vectors.intakes,
                timer=self.world.wall.monotonic,
            )
            self.world.counts[f"scored_{lane.variant}"] += len(batch)
            for message in batch.encode():
                self.world.log.append(
                    self._predictions, message, available_at=int(vectors.intakes.max())
                )
