"""The router's judge: versions and telemetry in, rollouts out."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from homeostat.common import topics
from homeostat.common.schemas.models import ModelVersion
from homeostat.router import judging
from homeostat.router.judge.telemetry import ledger_rows
from homeostat.router.judging import Decision, Input, State, Telemetry, Tick
from homeostat.router.rollout import Rollout
from homeostat.sim.log import Record
from homeostat.sim.process import Process, World

_decode_version = msgspec.json.Decoder(ModelVersion).decode
EPOCH = 1  # there is one judge


class Judge(Process):
    """Takes challengers through their rollout. ``moves`` keeps each decision with the state after
    it.
    """

    def __init__(self, world: World) -> None:
        name = world.pipeline.name
        super().__init__(
            world,
            {
                topics.MODEL_VERSIONS.of(): self._learn,
                topics.PREDICTIONS.of(name): self._observe,
            },
        )
        self.moves: list[tuple[int, Decision, Rollout]] = []
        self._state = State.empty(name)
        self._versions: list[ModelVersion] = []

    def tick(self) -> None:
        due: list[Input] = [
            version
            for version in self._versions
            if judging.is_due(self._state, version, self.world.now)
        ]
        for given in due or [Tick()]:
            self._step(given)

    def _learn(self, records: Sequence[Record]) -> None:
        self._versions += [_decode_version(record.value) for record in records]

    def _observe(self, records: Sequence[Record]) -> None:
        if not self._state.rollout.is_in_flight:
            return
        topic = topics.PREDICTIONS.of(self.world.pipeline.name)
        self._step(Telemetry(ledger_rows(topic, [record.value for record in records])))

    def _step(self, given: Input) -> None:
        now, before = self.world.now, self._state.rollout
        self._state, decisions = judging.step(self._state, given, now, self.world.pipeline)
        rollout = self._state.rollout
        self.moves += [(now, decision, rollout) for decision in decisions]
        if rollout.generation != before.generation:
            snapshot = rollout.snapshot(EPOCH)
            self.world.log.append(
                topics.ROLLOUTS.of(), msgspec.json.encode(snapshot), available_at=now
            )
