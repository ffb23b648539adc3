"""What every simulated process is made of: inputs that it reads in turns, and a shared world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from homeostat.common.clock import PipelineClock
from homeostat.common.events import EventContract
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import Pipeline
from homeostat.sim.clock import VirtualClock
from homeostat.sim.log import Log, Record

FETCH_RECORDS = 2_000

Handler = Callable[[Sequence[Record]], None]


@dataclass(frozen=True)
class World:
    """What the processes of one pipeline share. ``counts`` is the simulation's only metric."""

    pipeline: Pipeline
    view: FeatureView
    contract: EventContract
    wall: VirtualClock
    clock: PipelineClock
    log: Log = field(default_factory=Log)
    counts: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, pipeline: Pipeline) -> World:
        wall = VirtualClock()
        return cls(
            pipeline, FeatureView(pipeline), EventContract(pipeline), wall, PipelineClock(wall)
        )

    @property
    def now(self) -> int:
        """The pipeline's instant, epoch ms."""
        return self.clock.now_millis()


class Process:
    """Reads its topics whenever it is given a turn, and hears of time passing."""

    def __init__(self, world: World, inputs: Mapping[str, Handler]) -> None:
        self.world = world
        self._inputs = [(world.log.reader(topic), handle) for topic, handle in inputs.items()]

    @property
    def is_behind(self) -> bool:
        return any(reader.is_behind for reader, _ in self._inputs)

    def turn(self) -> None:
        """One fetch of each topic, in the order in which they were named."""
        for reader, handle in self._inputs:
            if records := reader.read(FETCH_RECORDS):
                handle(records)

    def tick(self) -> None:
        """Time has passed."""
