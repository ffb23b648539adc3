"""The drift service: predictions and outcomes in, alerts out."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from homeostat.common import topics
from homeostat.common.schemas.alerts import Alert
from homeostat.common.schemas.models import ModelVersion
from homeostat.common.schemas.rollouts import RolloutSnapshot
from homeostat.drift.columns import outcomes_of, read_outcomes, read_predictions
from homeostat.drift.monitor import Input, Labels, Monitor, State, Tick
from homeostat.drift.window import Baseline
from homeostat.sim.log import Record
from homeostat.sim.process import Process, World

_decode_version = msgspec.json.Decoder(ModelVersion).decode
_decode_rollout = msgspec.json.Decoder(RolloutSnapshot).decode


class Watch(Process):
    """Watches the versions that the rollout names."""

    def __init__(self, world: World) -> None:
        name = world.pipeline.name
        super().__init__(
            world,
            {
                topics.MODEL_VERSIONS.of(): self._learn,
                topics.ROLLOUTS.of(): self._follow,
                topics.PREDICTIONS.of(name): self._take_predictions,
                topics.OUTCOMES.of(name): self._take_outcomes,
            },
        )
        self.alerts: list[Alert] = []
        self._versions: dict[int, ModelVersion] = {}
        self._monitor = Monitor(world.pipeline)
        self._state = State()
        self._labels_until: int | None = None

    def tick(self) -> None:
        self._step(Tick())

    def _learn(self, records: Sequence[Record]) -> None:
        for record in records:
            version = _decode_version(record.value)
            self._versions[version.version] = version

    def _follow(self, records: Sequence[Record]) -> None:
        rollout = _decode_rollout(records[-1].value)
        live = [
            self._versions[number]
            for number in (rollout.champion, rollout.challenger)
            if number is not None
        ]
        self._monitor = Monitor(
            self.world.pipeline,
            champion=rollout.champion,
            baselines={
                each.version: Baseline.of(each.version, each.features, each.reference)
                for each in live
            },
        )

    def _take_predictions(self, records: Sequence[Record]) -> None:
        predictions, _ = read_predictions([record.value for record in records])
        self._step(predictions)

    def _take_outcomes(self, records: Sequence[Record]) -> None:
        rows, _ = read_outcomes([record.value for record in records])
        newest = max(row.available_at for row in rows)
        self._labels_until = max(newest, self._labels_until or newest)
        self._step(Labels(outcomes_of(rows), self._labels_until))

    def _step(self, item: Input) -> None:
        self._state, outputs = self._monitor.step(self._state, item, self.world.now)
        for alert in outputs.alerts:
            self.alerts.append(alert)
            self.world.log.append(
                topics.ALERTS.of(self.world.pipeline.name),
                msgspec.json.encode(alert),
                available_at=alert.at,
            )
