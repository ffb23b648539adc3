"""What the drift service follows on compacted topics: specs, champions, and what models were
trained on."""

from __future__ import annotations

import msgspec

from homeostat.common.kafka import CompactedView
from homeostat.common.pipeline import Snapshot
from homeostat.common.schemas.models import ModelVersion
from homeostat.common.schemas.rollouts import RolloutSnapshot
from homeostat.drift.monitor import Monitor
from homeostat.drift.window import Baseline

decode_rollout = msgspec.json.Decoder(RolloutSnapshot).decode
decode_version = msgspec.json.Decoder(ModelVersion).decode


class References:
    """The monitor of each pipeline, made anew when its spec, its rollout or a model version
    changes."""

    def __init__(
        self,
        pipelines: CompactedView[Snapshot],
        rollouts: CompactedView[RolloutSnapshot],
        versions: CompactedView[ModelVersion],
    ) -> None:
        self._pipelines = pipelines
        self._rollouts = rollouts
        self._versions = versions
        self._made: dict[str, tuple[tuple[object, ...], Monitor]] = {}

    def monitor(self, name: str) -> Monitor | None:
        """What to watch a pipeline with; ``None`` while it is not known."""
        snapshot = self._pipelines.values.get(name)
        if snapshot is None:
            return None
        rollout = self._rollouts.values.get(name)
        live = () if rollout is None else (rollout.champion, rollout.challenger)
        versions = [
            version
            for number in live
            if number is not None
            and (version := self._versions.values.get(f"{name}/{number}")) is not None
        ]
        sources = (snapshot, rollout, *versions)
        made = self._made.get(name)
        if made is None or not _are_same(made[0], sources):
            monitor = Monitor(
                snapshot.pipeline,
                champion=rollout.champion if rollout else None,
                baselines={
                    each.version: Baseline.of(each.version, each.features, each.reference)
                    for each in versions
                },
            )
            self._made[name] = made = (sources, monitor)
        return made[1]


def _are_same(old: tuple[object, ...], new: tuple[object, ...]) -> bool:
    return len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True))
