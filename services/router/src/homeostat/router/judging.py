"""The judge's step: ``step(state, input, now, pipeline) -> (state, decisions)``, pure.

Whatever comes in (an approved version, telemetry, a guard's trip, an alert, a person's command,
time), the stage in flight is judged afterwards, so that a decision waits for nothing but its
evidence.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Any

import msgspec

from homeostat.common.errors import Conflict
from homeostat.common.pipeline.spec import Pipeline
from homeostat.common.schemas.alerts import Alert, AlertKind
from homeostat.common.schemas.exposures import Exposure
from homeostat.common.schemas.models import ModelVersion, VersionState
from homeostat.common.schemas.rollouts import Phase, Trip
from homeostat.router import rollout as machine
from homeostat.router.analysis import Lens, Observation, Row, judge
from homeostat.router.rollout import Candidate, Judgement, Rollout, Verdict


class State(msgspec.Struct, frozen=True):
    """All that the judge keeps of a pipeline.

    ``offered`` lists the versions already dealt with. ``skew`` is what the skew audit has found,
    until a person clears it: nothing moves forwards meanwhile, since no figure can be trusted.
    """

    rollout: Rollout
    observation: Observation = Observation()
    offered: tuple[int, ...] = ()
    replayed_until: int | None = None  # the pipeline's clock, if a replay sets it
    skew: str | None = None

    @classmethod
    def empty(cls, pipeline: str) -> State:
        return cls(Rollout(pipeline))


class Decision(msgspec.Struct, frozen=True):
    """One thing that was decided, with the evidence for it."""

    action: str
    reason: str
    evidence: dict[str, Any] = {}


class Telemetry(msgspec.Struct, frozen=True):
    rows: list[Row] = []
    exposures: list[Exposure] = []


class Action(StrEnum):
    START = "start"
    ABORT = "abort"
    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"
    CLEAR = "clear"  # what was found as skew


class Command(msgspec.Struct, frozen=True):
    """What a person asks for. ``generation`` is the state that they saw, if they say so."""

    action: Action
    by: str
    reason: str
    generation: int | None = None
    version: ModelVersion | None = None  # of a start
    is_forced: bool = False  # over a digest that was rolled back, or a skew
    to_champion: bool = False  # of a promotion: at once, instead of to the next stage


class Tick(msgspec.Struct, frozen=True):
    """Time has passed."""


Input = ModelVersion | Telemetry | Trip | Alert | Command | Tick
Step = tuple[State, list[Decision]]


def step(state: State, given: Input, now: int, pipeline: Pipeline) -> Step:
    """Take one input into account and judge what is in flight.

    Raises:
        Conflict: a command that the state does not allow; nothing has changed then.
    """
    match given:
        case ModelVersion():
            state, decisions = _offer(state, given, now, pipeline)
        case Telemetry():
            state, decisions = _observe(state, given, pipeline), []
        case Trip():
            state, decisions = _trip(state, given, now)
        case Alert():
            state, decisions = _alarmed(state, given)
        case Command():
            state, decisions = _obey(state, given, now, pipeline)
        case Tick():
            decisions = []
    state, judged = _review(state, now, pipeline)
    return state, [*decisions, *judged]


def is_due(state: State, version: ModelVersion, now: int) -> bool:
    """Whether a version waits to be dealt with at this instant of the pipeline's time."""
    return (
        version.state is VersionState.APPROVED
        and version.version not in state.offered
        and version.available_at <= now
    )


def current_judgement(state: State, now: int, pipeline: Pipeline) -> Judgement | None:
    """How the stage in flight stands, without consequences."""
    if not state.rollout.is_in_flight:
        return None
    guardrails = pipeline.rollout.guardrails
    lens = _lens(state, pipeline)
    judgement = judge(
        state.rollout,
        state.observation,
        guardrails,
        lens.bucket_ms,
        now,
        grace_ms=pipeline.lateness // timedelta(milliseconds=1),
    )
    if state.skew is not None and judgement.verdict is Verdict.PROMOTE:
        reason = f"held by a skew: {state.skew}"
        return msgspec.structs.replace(judgement, verdict=Verdict.CONTINUE, reason=reason)
    return judgement


def _offer(state: State, version: ModelVersion, now: int, pipeline: Pipeline) -> Step:
    if not is_due(state, version, now):
        return state, []
    candidate = Candidate(version.version, version.artifact.sha256)
    state = msgspec.structs.replace(state, offered=(*state.offered, version.version))
    rollout = state.rollout
    evidence = {"version": version.version, "digest": candidate.digest, "cause": version.cause}
    if candidate.digest in rollout.rejected:
        reason = f"version {version.version} has the digest of one that was rolled back"
        return state, [Decision("refused", reason, evidence)]
    if rollout.champion is None:
        return _moved(state, "crowned", machine.crown(rollout, candidate, now), evidence)
    if rollout.is_in_flight:
        return _moved(state, "queued", machine.enqueue(rollout, candidate, now), evidence)
    return _started(state, candidate, now, pipeline, evidence)


def _observe(state: State, telemetry: Telemetry, pipeline: Pipeline) -> State:
    if not state.rollout.is_in_flight:
        return state
    seen = _lens(state, pipeline).observe(telemetry.rows, telemetry.exposures)
    return msgspec.structs.replace(state, observation=state.observation.merged(seen))


def _trip(state: State, trip: Trip, now: int) -> Step:
    after = machine.acknowledge(state.rollout, trip, now)
    if after is state.rollout:
        return state, []
    action = "rolled_back" if state.rollout.is_in_flight else "trip_seen"
    return _moved(state, action, after, {"trip": msgspec.to_builtins(trip)})


def _alarmed(state: State, alert: Alert) -> Step:
    """A skew holds what is in flight, and what comes; other alerts are the trainer's."""
    if alert.kind is not AlertKind.SKEW or state.skew is not None:
        return state, []
    state = msgspec.structs.replace(state, skew=alert.message)
    return state, [Decision("skewed", alert.message, {"alert": msgspec.to_builtins(alert)})]


def _obey(state: State, command: Command, now: int, pipeline: Pipeline) -> Step:
    rollout = state.rollout
    if command.generation is not None and command.generation != rollout.generation:
        raise Conflict(
            f"the rollout is at generation {rollout.generation}, not {command.generation}",
            fix="look at the state again, then repeat the command with its generation",
        )
    evidence: dict[str, Any] = {"by": command.by}
    reason = f"{command.action} by {command.by}: {command.reason}"
    if command.action is Action.START:
        return _start_by_hand(state, command, now, pipeline, evidence)
    if command.action is Action.CLEAR:
        return _clear(state, reason, evidence)
    if not rollout.is_in_flight:
        raise Conflict("no rollout is in flight", fix="start one, or wait for a version")
    evidence |= state.observation.figures()
    match command.action:
        case Action.ABORT:
            return _moved(state, "aborted", machine.roll_back(rollout, reason, now), evidence)
        case Action.PROMOTE:
            if state.skew is not None and not (command.is_forced and command.reason):
                raise Conflict(
                    f"promotions are held by a skew: {state.skew}",
                    fix='find its cause and clear it, or repeat with {"force": true, "reason": …}',
                )
            move = machine.complete if command.to_champion else machine.step_up
            return _moved(state, "promoted", move(rollout, reason, now), evidence)
        case Action.PAUSE if not rollout.is_paused:
            return _moved(state, "paused", machine.pause(rollout, reason, now), evidence)
        case Action.RESUME if rollout.is_paused:
            return _moved(state, "resumed", machine.resume(rollout, reason, now), evidence)
    raise Conflict(f"the rollout is {'' if rollout.is_paused else 'not '}paused")


def _clear(state: State, reason: str, evidence: dict[str, Any]) -> Step:
    if state.skew is None:
        raise Conflict("no skew was found")
    evidence |= {"skew": state.skew}
    return msgspec.structs.replace(state, skew=None), [Decision("cleared", reason, evidence)]


def _start_by_hand(
    state: State, command: Command, now: int, pipeline: Pipeline, evidence: dict[str, Any]
) -> Step:
    version, rollout = command.version, state.rollout
    if version is None:
        raise Conflict("a start names the version", fix='for example {"version": 3}')
    if version.state is not VersionState.APPROVED:
        raise Conflict(
            f"version {version.version} is {version.state}", fix="only approved versions start"
        )
    if rollout.is_in_flight:
        raise Conflict("another rollout is in flight", fix="abort it, or wait for its end")
    candidate = Candidate(version.version, version.artifact.sha256)
    if rollout.champion is not None and rollout.champion.version == candidate.version:
        raise Conflict(f"version {candidate.version} is the champion already")
    if candidate.digest in rollout.rejected:
        if not (command.is_forced and command.reason):
            raise Conflict(
                f"version {candidate.version} was rolled back before",
                fix='repeat with {"force": true, "reason": "why it is right now"}',
            )
        evidence |= {"forced": command.reason}
    offered = tuple(dict.fromkeys((*state.offered, candidate.version)))
    state = msgspec.structs.replace(state, offered=offered)
    if rollout.champion is None:
        return _moved(state, "crowned", machine.crown(rollout, candidate, now), evidence)
    return _started(state, candidate, now, pipeline, evidence)


def _review(state: State, now: int, pipeline: Pipeline) -> Step:
    """Judge the stage in flight; with none, let the version that waits begin."""
    rollout = state.rollout
    judgement = current_judgement(state, now, pipeline)
    if judgement is None:
        if rollout.queued is None:
            return state, []
        evidence = {"version": rollout.queued.version, "was": "queued"}
        if rollout.queued.digest in rollout.rejected:
            return _moved(state, "refused", machine.dismiss(rollout, now), evidence)
        return _started(state, rollout.queued, now, pipeline, evidence)
    after = machine.advance(rollout, judgement, now)
    if after is rollout:
        return state, []
    evidence = {"verdict": judgement.verdict, **judgement.evidence}
    return _moved(state, _action(rollout, after), after, evidence)


def _action(before: Rollout, after: Rollout) -> str:
    if after.phase is Phase.ROLLED_BACK:
        return "rolled_back"
    if after.phase is Phase.CHAMPION:
        return "promoted"
    if after.stage != before.stage:
        return "advanced"
    return "held" if after.gap_since is not None else "released"


def _started(
    state: State, candidate: Candidate, now: int, pipeline: Pipeline, evidence: dict[str, Any]
) -> Step:
    after = machine.start(state.rollout, candidate, pipeline.rollout, now)
    return _moved(state, "started", after, evidence)


def _moved(state: State, action: str, after: Rollout, evidence: dict[str, Any]) -> Step:
    """The decision that led to ``after``; a new stage begins to count from nothing."""
    before = state.rollout
    is_same_stage = (before.id, before.stage) == (after.id, after.stage)
    state = msgspec.structs.replace(
        state,
        rollout=after,
        observation=state.observation if is_same_stage else Observation(),
    )
    standing = {
        "rollout": after.id,
        "generation": after.generation,
        "from": _standing(before),
        "to": _standing(after),
    }
    return state, [Decision(action, after.reason, {**standing, **evidence})]


def _standing(rollout: Rollout) -> dict[str, Any]:
    return {
        "phase": rollout.phase,
        "share": rollout.share,
        "champion": rollout.champion.version if rollout.champion else None,
        "challenger": rollout.challenger.version if rollout.challenger else None,
    }


def _lens(state: State, pipeline: Pipeline) -> Lens:
    return Lens.of(state.rollout, pipeline.rollout.guardrails, pipeline.scoring.value)


__all__ = [
    "Action",
    "Command",
    "Decision",
    "Input",
    "State",
    "Step",
    "Telemetry",
    "Tick",
    "Verdict",
    "current_judgement",
    "is_due",
    "step",
]
