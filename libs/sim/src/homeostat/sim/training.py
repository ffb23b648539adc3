"""The trainer: alerts, labels and the schedule ask; runs train, judge and announce versions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import msgspec

from homeostat.common import topics
from homeostat.common.errors import NotFound
from homeostat.common.schemas.alerts import Alert
from homeostat.common.schemas.models import Artifact, Gate, ModelVersion, VersionState
from homeostat.common.schemas.rollouts import RolloutSnapshot
from homeostat.sim.log import Record
from homeostat.sim.offline import OfflineStore
from homeostat.sim.process import Process, World
from homeostat.sim.registry import Registry
from homeostat.trainer import dataset, training, triggers
from homeostat.trainer.dataset import Refused
from homeostat.trainer.triggers import Signals, State, Trigger

_decode_alert = msgspec.json.Decoder(Alert).decode
_decode_rollout = msgspec.json.Decoder(RolloutSnapshot).decode
THREADS = 1  # more would give other models


@dataclass(frozen=True)
class Run:
    """One training run and what came of it; without a ``version`` it was refused."""

    at: int  # epoch ms, pipeline time
    trigger: Trigger
    outcome: str
    gates: tuple[Gate, ...] = ()
    evidence: dict[str, str] | None = None
    version: int | None = None
    was_cut_short: bool = False  # by seconds: another machine may find another model


class Trainer(Process):
    """Runs when the triggers say so. A run costs the pipeline time that its file declares."""

    def __init__(self, world: World, registry: Registry, store: OfflineStore) -> None:
        name = world.pipeline.name
        super().__init__(
            world,
            {
                topics.ROLLOUTS.of(): self._follow,
                topics.OUTCOMES.of(name): self._count,
                topics.ALERTS.of(name): self._hear,
            },
        )
        self.runs: list[Run] = []
        self._registry = registry
        self._store = store
        self._state = State()
        self._champion: int | None = None
        self._busy_until = 0
        self._cost = world.pipeline.training.cost // timedelta(milliseconds=1)

    @property
    def has_announced(self) -> bool:
        """Whether there is a first version."""
        return any(run.version is not None for run in self.runs)

    def ask(self, reason: str) -> None:
        """Start a run as a person would."""
        self._step(Signals(by_hand=reason))

    def tick(self) -> None:
        self._step(Signals())

    def _follow(self, records: Sequence[Record]) -> None:
        self._champion = _decode_rollout(records[-1].value).champion

    def _count(self, records: Sequence[Record]) -> None:
        self._step(Signals(outcomes=len(records)))

    def _hear(self, records: Sequence[Record]) -> None:
        self._step(Signals(alerts=tuple(_decode_alert(record.value) for record in records)))

    def _step(self, signals: Signals) -> None:
        now = self.world.now
        step = triggers.step(
            self._state,
            signals,
            now=now,
            training=self.world.pipeline.training,
            is_running=now < self._busy_until,
        )
        self._state = step.state
        for kind, reason in step.absorbed:
            self.world.counts[f"absorbed_{kind}_{reason}"] += 1
        if step.start is not None:
            self._busy_until = now + self._cost
            self.runs.append(self._run(step.start, now))

    def _run(self, trigger: Trigger, now: int) -> Run:
        pipeline = self.world.pipeline
        champion = None if self._champion is None else self._registry.file(self._champion)
        try:
            examples = dataset.load(self._store.root, pipeline, self._store.commit(), as_of=now)
            judged, content = training.train(examples, pipeline, champion=champion, threads=THREADS)
        except (Refused, NotFound) as error:
            return Run(now, trigger, f"refused: {error.detail}")
        verdict, candidate = judged.verdict, judged.candidate
        if candidate is None or content is None:
            return Run(now, trigger, f"refused: {verdict.reason}", verdict.gates, judged.details)
        version = ModelVersion(
            pipeline=pipeline.name,
            version=self._registry.next_version,
            state=VersionState.APPROVED,
            created_at=now,
            available_at=now + self._cost,
            cause=f"{trigger.kind}: {trigger.message}",
            artifact=Artifact(candidate.sha256, candidate.size_bytes, uri=""),
            features=candidate.features,
            definition_hash=candidate.definition_hash,
            threshold=candidate.threshold,
            golden=candidate.golden,
            reference=candidate.reference,
            gates=verdict.gates,
            training=candidate.training,
        )
        self._registry.add(version, content)
        self.world.log.append(
            topics.MODEL_VERSIONS.of(), msgspec.json.encode(version), available_at=now
        )
        return Run(
            now,
            trigger,
            "approved",
            verdict.gates,
            candidate.training,
            version.version,
            was_cut_short=candidate.training["search"] != "complete",
        )
