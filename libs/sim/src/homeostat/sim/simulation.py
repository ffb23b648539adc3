"""One pipeline's services in one process: who reads what, and in which order they get a turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from homeostat.common import topics
from homeostat.common.errors import InvalidEvent
from homeostat.common.events import REPLAY_STAMP
from homeostat.common.pipeline import Pipeline
from homeostat.common.schemas.labels import Label
from homeostat.sim.features import Entity, Events, Labels
from homeostat.sim.judging import Judge
from homeostat.sim.label_index import LabelIndex
from homeostat.sim.offline import OfflineStore
from homeostat.sim.process import Process, World
from homeostat.sim.registry import Registry
from homeostat.sim.scoring import Scoring
from homeostat.sim.training import Trainer
from homeostat.sim.watching import Watch

_encode = msgspec.json.Encoder().encode
Row = Mapping[str, Any]


class Simulation:
    """Everything between the front door and the champion's place, deterministic for a ``seed``.

    Rows come in through ``send_events`` and ``send_labels``; nothing happens to them before
    ``settle``; time passes in ``advance_to`` alone. Observers are processes added with ``join``.
    """

    def __init__(self, pipeline: Pipeline, *, seed: int, store: Path) -> None:
        self.world = world = World.of(pipeline)
        self.registry = Registry()
        self._random = np.random.default_rng(seed)
        index = LabelIndex()
        offline = OfflineStore(world, store)
        self.watch = Watch(world)
        self.trainer = Trainer(world, self.registry, offline)
        self.judge = Judge(world)
        self._processes: list[Process] = [
            Events(world, index),
            Labels(world, index),
            *(Entity(world, entity) for entity in world.view.entities),
            offline,
            Scoring(world, self.registry),
            self.watch,
            self.trainer,
            self.judge,
        ]

    def join(self, process: Process) -> None:
        self._processes.append(process)

    def send_events(self, rows: Sequence[Row]) -> list[InvalidEvent]:
        """Accept events as the front door does; what it refuses comes back."""
        refused: list[InvalidEvent] = []
        topic = topics.EVENTS.of(self.world.pipeline.name)
        contract = self.world.contract
        for row in rows:
            try:
                event = contract.parse_replayed(_encode(row))
            except InvalidEvent as error:
                refused.append(error)
                continue
            self.world.log.append(
                topic,
                contract.encode(event),
                key=event.key.encode(),
                available_at=event.intake,
            )
        return refused

    def send_labels(self, rows: Sequence[Row]) -> None:
        topic = topics.LABELS.of(self.world.pipeline.name)
        for row in rows:
            label = Label(row["id"], row["label"])
            self.world.log.append(
                topic, _encode(label), key=label.id.encode(), available_at=row[REPLAY_STAMP]
            )

    def settle(self) -> None:
        """Give turns, in an order drawn from the seed, until everything sent has been read."""
        while behind := [process for process in self._processes if process.is_behind]:
            behind[int(self._random.integers(len(behind)))].turn()
        self.world.log.expire()

    def advance_to(self, millis: int) -> None:
        """Let time pass, and everybody act on it."""
        self.world.wall.advance_to(millis)
        self.world.clock.observe(millis)
        for index in self._random.permutation(len(self._processes)).tolist():
            self._processes[index].tick()
        self.settle()
