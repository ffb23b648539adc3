"""The first champion: asked for as a person would, once there is something to learn from."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from datetime import timedelta

import msgspec

from homeostat.common import topics
from homeostat.common.schemas.labels import Outcome
from homeostat.sim.log import Record
from homeostat.sim.process import Process, World
from homeostat.sim.training import Trainer

_decode_outcome = msgspec.json.Decoder(Outcome).decode


class WarmUp(Process):
    """Asks the trainer for the first version, and after a refusal again when the cooldown is over.

    With ``rows`` it asks after so many events; without, as soon as the mature labels are as many
    as the pipeline's ``training`` wants.
    """

    def __init__(self, world: World, trainer: Trainer, *, rows: int | None) -> None:
        name = world.pipeline.name
        super().__init__(
            world,
            {topics.EVENTS.of(name): self._count, topics.OUTCOMES.of(name): self._take},
        )
        self._trainer = trainer
        self._rows = rows
        self._events: list[int] = []  # event times, ascending
        self._labelled: list[int] = []
        self._positives: list[int] = []
        self._next_try = 0

    def tick(self) -> None:
        now = self.world.now
        if self._trainer.has_announced or now < self._next_try or not self._is_ready(now):
            return
        self._trainer.ask("first champion")
        cooldown = self.world.pipeline.training.cooldown
        self._next_try = now + max(1, cooldown // timedelta(milliseconds=1))

    def _is_ready(self, now: int) -> bool:
        if self._rows is not None:
            return len(self._events) >= self._rows
        pipeline = self.world.pipeline
        mature = now - pipeline.source.label.maturity // timedelta(milliseconds=1)
        teaching = self._labelled if pipeline.source.label.absent == "drop" else self._events
        return (
            bisect_right(teaching, mature) >= pipeline.training.min_rows
            and bisect_right(self._positives, mature) >= pipeline.training.min_positives
        )

    def _count(self, records: Sequence[Record]) -> None:
        self._events += [record.available_at for record in records]

    def _take(self, records: Sequence[Record]) -> None:
        if self._trainer.has_announced:
            return
        for record in records:
            outcome = _decode_outcome(record.value)
            insort(self._labelled, outcome.event_time)
            if outcome.label > 0.5:
                insort(self._positives, outcome.event_time)
