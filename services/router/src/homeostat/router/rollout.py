"""The way of a challenger to the champion's place: a pure state machine.

::

    idle ─ shadow ─ experiment ─ canary 5 ─ 25 ─ 50 ─ 100 ─ champion
              └─────────┴──────────┴──── rolled back: by a verdict, a trip, a person, silence

The stages are fixed when a rollout starts: a pipeline file that changes meanwhile changes the next
one. Time is the pipeline's, in epoch milliseconds.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Any

import msgspec

from homeostat.common.pipeline.spec import RolloutSpec
from homeostat.common.schemas.rollouts import Phase, RolloutSnapshot, Trip

IN_FLIGHT = frozenset({Phase.SHADOW, Phase.EXPERIMENT, Phase.CANARY})
LIVE = frozenset({Phase.EXPERIMENT, Phase.CANARY})


class Verdict(StrEnum):
    PROMOTE = "promote"
    ROLL_BACK = "roll_back"
    CONTINUE = "continue"
    INSUFFICIENT = "insufficient"


class Judgement(msgspec.Struct, frozen=True):
    """A verdict, why, and the figures that it stands on.

    ``is_gap``: there is traffic, but the telemetry of an arm is missing. That is never the same as
    too little traffic, which may last as long as it likes.
    """

    verdict: Verdict
    reason: str
    evidence: dict[str, Any] = {}
    is_gap: bool = False


class Stage(msgspec.Struct, frozen=True):
    """One station; ``share`` of the units is answered by the challenger."""

    phase: Phase
    share: float
    hold_ms: int
    min_samples: int


class Candidate(msgspec.Struct, frozen=True):
    """An approved version and the digest of its model file, by which it is known again."""

    version: int
    digest: str


class Rollout(msgspec.Struct, frozen=True):
    """The whole state of a pipeline's rollout; ``generation`` counts its changes.

    ``queued`` is the one version that waits for the rollout in flight to end: there are never three
    arms. ``rejected`` lists digests that were rolled back and start again only by force.
    """

    pipeline: str
    id: str = ""
    generation: int = 0
    phase: Phase = Phase.IDLE
    champion: Candidate | None = None
    previous: Candidate | None = None
    challenger: Candidate | None = None
    queued: Candidate | None = None
    stages: tuple[Stage, ...] = ()
    stage: int = 0
    holdback: float = 0.0
    no_data_deadline_ms: int = 0
    entered_at: int = 0
    paused_at: int | None = None
    gap_since: int | None = None
    rejected: tuple[str, ...] = ()
    seen_trips: tuple[str, ...] = ()
    reason: str = ""
    updated_at: int = 0

    @property
    def is_in_flight(self) -> bool:
        return self.phase in IN_FLIGHT

    @property
    def is_paused(self) -> bool:
        return self.paused_at is not None

    @property
    def current(self) -> Stage:
        """The stage of a rollout in flight."""
        return self.stages[self.stage]

    @property
    def share(self) -> float:
        """Of the units, how many the challenger answers; the holdback is the champion's."""
        if self.phase not in LIVE:
            return 0.0
        return min(self.current.share, 1.0 - self.holdback)

    def is_held(self, now: int) -> bool:
        """Whether the stage must last longer."""
        return now - self.entered_at < self.current.hold_ms

    def snapshot(self, epoch: int) -> RolloutSnapshot:
        """What routers and scorers are told."""
        return RolloutSnapshot(
            pipeline=self.pipeline,
            rollout=self.id,
            generation=self.generation,
            epoch=epoch,
            phase=self.phase,
            champion=self.champion.version if self.champion else None,
            challenger=self.challenger.version if self.challenger else None,
            share=self.share,
            holdback=self.holdback if self.phase in LIVE else 0.0,
            is_shadowing=self.phase is Phase.SHADOW,
            seen_trips=self.seen_trips,
            reason=self.reason,
            updated_at=self.updated_at,
        )


def stages(spec: RolloutSpec) -> tuple[Stage, ...]:
    """The stations of a rollout, shares never falling.

    Canary steps below the experiment's share are skipped: under one salt a smaller step would take
    units back from the challenger.
    """
    found: list[Stage] = []
    if spec.shadow is not None:
        shadow = spec.shadow
        found.append(Stage(Phase.SHADOW, 0.0, _millis(shadow.hold), shadow.min_samples))
    floor = 0.0
    if spec.experiment is not None:
        experiment = spec.experiment
        floor = experiment.share
        found.append(
            Stage(Phase.EXPERIMENT, floor, _millis(experiment.hold), experiment.min_samples)
        )
    found.extend(
        Stage(Phase.CANARY, share, _millis(spec.hold), spec.min_samples)
        for share in spec.steps
        if share >= floor
    )
    return tuple(found)


def crown(rollout: Rollout, first: Candidate, now: int) -> Rollout:
    """The first version ever needs no comparison: there is nothing to compare it with."""
    return _changed(
        rollout,
        now,
        reason=f"version {first.version} is the first champion",
        phase=Phase.CHAMPION,
        champion=first,
        id=_new_id(rollout, first),
    )


def start(rollout: Rollout, challenger: Candidate, spec: RolloutSpec, now: int) -> Rollout:
    """Begin the way of ``challenger`` under a salt of its own."""
    stations = stages(spec)
    return _changed(
        rollout,
        now,
        reason=f"version {challenger.version} starts",
        id=_new_id(rollout, challenger),
        phase=stations[0].phase,
        challenger=challenger,
        queued=None,
        stages=stations,
        stage=0,
        holdback=spec.holdback,
        no_data_deadline_ms=_millis(spec.no_data_deadline),
        entered_at=now,
        paused_at=None,
        gap_since=None,
        seen_trips=(),
    )


def enqueue(rollout: Rollout, candidate: Candidate, now: int) -> Rollout:
    """Let a version wait; a newer one takes the place of one that waits already."""
    superseded = f", instead of {rollout.queued.version}" if rollout.queued else ""
    return _changed(
        rollout,
        now,
        reason=f"version {candidate.version} waits for the rollout in flight{superseded}",
        queued=candidate,
    )


def dismiss(rollout: Rollout, now: int) -> Rollout:
    """Drop the version that waits: its digest has been rolled back meanwhile."""
    return _changed(
        rollout, now, reason="the version that waited has a digest rolled back", queued=None
    )


def advance(rollout: Rollout, judgement: Judgement, now: int) -> Rollout:
    """Apply one judgement; the same value comes back when nothing follows from it.

    Only a promote verdict moves forwards, by one stage, and not before its hold is over. A roll
    back is obeyed always, also while paused. A gap in telemetry that outlasts the deadline goes
    back to the champion.
    """
    if not rollout.is_in_flight:
        return rollout
    if judgement.verdict is Verdict.ROLL_BACK:
        return roll_back(rollout, judgement.reason, now)
    if rollout.is_paused:
        return rollout
    if judgement.is_gap:
        if rollout.gap_since is None:
            return _changed(rollout, now, reason=f"holds: {judgement.reason}", gap_since=now)
        if now - rollout.gap_since >= rollout.no_data_deadline_ms:
            return roll_back(rollout, f"no data until the deadline: {judgement.reason}", now)
        return rollout
    if rollout.gap_since is not None:
        rollout = _changed(rollout, now, reason="both arms report again", gap_since=None)
    if judgement.verdict is Verdict.PROMOTE and not rollout.is_held(now):
        return step_up(rollout, judgement.reason, now)
    return rollout


def step_up(rollout: Rollout, reason: str, now: int) -> Rollout:
    """To the next stage, or after the last one to the champion's place."""
    if rollout.stage + 1 == len(rollout.stages):
        return complete(rollout, reason, now)
    following = rollout.stages[rollout.stage + 1]
    return _changed(
        rollout,
        now,
        reason=reason,
        phase=following.phase,
        stage=rollout.stage + 1,
        entered_at=now,
        paused_at=None,
        gap_since=None,
    )


def complete(rollout: Rollout, reason: str, now: int) -> Rollout:
    """The challenger is the champion; the one before is remembered."""
    return _changed(
        rollout,
        now,
        reason=reason,
        phase=Phase.CHAMPION,
        champion=rollout.challenger,
        previous=rollout.champion,
        challenger=None,
        paused_at=None,
        gap_since=None,
    )


def roll_back(rollout: Rollout, reason: str, now: int) -> Rollout:
    """All units back to the champion, and the digest refused from now on."""
    refused = (rollout.challenger.digest,) if rollout.challenger else ()
    return _changed(
        rollout,
        now,
        reason=reason,
        phase=Phase.ROLLED_BACK,
        rejected=tuple(dict.fromkeys((*rollout.rejected, *refused))),
        paused_at=None,
        gap_since=None,
    )


def acknowledge(rollout: Rollout, trip: Trip, now: int) -> Rollout:
    """Take a guard's trip into account: of the rollout in flight it is the end, else nothing."""
    if trip.rollout != rollout.id or trip.key in rollout.seen_trips:
        return rollout
    seen = _changed(rollout, now, seen_trips=(*rollout.seen_trips, trip.key))
    if not rollout.is_in_flight:
        return seen
    return roll_back(seen, f"the guard of {trip.router} tripped: {trip.reason}", now)


def pause(rollout: Rollout, reason: str, now: int) -> Rollout:
    return _changed(rollout, now, reason=reason, paused_at=now, gap_since=None)


def resume(rollout: Rollout, reason: str, now: int) -> Rollout:
    """Go on; the time spent paused does not count as held."""
    paused_ms = 0 if rollout.paused_at is None else now - rollout.paused_at
    return _changed(
        rollout, now, reason=reason, paused_at=None, entered_at=rollout.entered_at + paused_ms
    )


def _changed(rollout: Rollout, now: int, **changes: Any) -> Rollout:
    return msgspec.structs.replace(
        rollout, generation=rollout.generation + 1, updated_at=now, **changes
    )


def _new_id(rollout: Rollout, candidate: Candidate) -> str:
    # The generation makes the salt new when a version is started a second time.
    return f"{rollout.pipeline}-{candidate.version}-{rollout.generation + 1}"


def _millis(duration: timedelta) -> int:
    return round(duration.total_seconds() * 1000)
