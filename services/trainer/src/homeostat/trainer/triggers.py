"""When to train: alerts, labels, the schedule and people ask; at most one run comes of it.

Pure: the caller passes the pipeline's time and whether a run is active, and stores what it gets
back in the same transaction as its input positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from enum import StrEnum

import msgspec

from homeostat.common.durations import format_duration
from homeostat.common.pipeline.spec import TrainingSpec, TriggerSpec
from homeostat.common.schemas.alerts import Alert, AlertKind

REMEMBERED_ALERTS = 256


class Kind(StrEnum):
    DRIFT = "drift"
    PERFORMANCE = "performance"
    LABELS = "labels"
    SCHEDULE = "schedule"
    HAND = "hand"


class Trigger(msgspec.Struct, frozen=True):
    """Why a run starts. ``id`` is that of the alert, if it was one."""

    kind: Kind
    message: str
    id: str = ""


class Absorbed(StrEnum):
    """Why a request for a run came to nothing."""

    DATA_FAULT = "data_fault"  # pages people; a model trained on broken data is broken
    NOT_ASKED = "not_asked"  # the alert or the pipeline says that this kind does not retrain
    DUPLICATE = "duplicate"
    RUNNING = "running"
    COOLDOWN = "cooldown"


class State(msgspec.Struct, frozen=True):
    """What one pipeline's triggers remember; instants are epoch ms of pipeline time."""

    since: int | None = None  # the schedule counts from here: the last run, or the first look
    last_run_at: int | None = None
    answered_at: int | None = None  # when the alert was raised that the last run answers
    labels: int = 0  # outcomes since the last run
    seen: tuple[str, ...] = ()  # ids of the latest alerts


class Signals(msgspec.Struct, frozen=True):
    """What has come in since the last step; empty ones let the schedule have its say."""

    alerts: tuple[Alert, ...] = ()
    outcomes: int = 0
    by_hand: str | None = None


class Step(msgspec.Struct, frozen=True):
    state: State
    start: Trigger | None
    absorbed: tuple[tuple[Kind, Absorbed], ...] = ()


def step(
    state: State, signals: Signals, *, now: int, training: TrainingSpec, is_running: bool
) -> Step:
    """Take signals in; start at most one run.

    The schedule counts from the first look, or from a later one when the clock went back between
    them: before its first record a replay has no clock, and wall time stands in.

    A run by hand ignores the cooldown, never another run. Alerts that come while a run is active
    or cooling down are absorbed: the drift service repeats what persists. It does so once a
    cooldown; so between two alerts the cooldown is that of their own instants, or the second would
    come too early by as much as the first was taken in late. Labels keep counting.
    """
    state = msgspec.structs.replace(
        state,
        since=now if state.since is None else min(state.since, now),
        labels=state.labels + signals.outcomes,
    )
    absorbed: list[tuple[Kind, Absorbed]] = []
    start: Trigger | None = None
    answered: int | None = None
    if signals.by_hand is not None:
        if is_running:
            absorbed.append((Kind.HAND, Absorbed.RUNNING))
        else:
            start = Trigger(Kind.HAND, signals.by_hand)
    is_cooling = state.last_run_at is not None and now - state.last_run_at < _millis(
        training.cooldown
    )
    for alert in signals.alerts:
        kind, objection = _wish(alert, training.triggers, state.seen)
        if objection is None and (is_running or start is not None):
            objection = Absorbed.RUNNING
        elif objection is None and is_cooling and not _is_due_again(state, alert, training):
            objection = Absorbed.COOLDOWN
        if objection is None:
            start, answered = Trigger(kind, alert.message, alert.id), alert.at
        else:
            absorbed.append((kind, objection))
        if alert.id not in state.seen:
            seen = (*state.seen, alert.id)[-REMEMBERED_ALERTS:]
            state = msgspec.structs.replace(state, seen=seen)
    if start is None and not is_running and not is_cooling:
        start = next(_due(state, training.triggers, now), None)
    if start is not None:
        state = msgspec.structs.replace(
            state, since=now, last_run_at=now, answered_at=answered, labels=0
        )
    return Step(state, start, tuple(absorbed))


def _wish(
    alert: Alert, triggers: TriggerSpec, seen: tuple[str, ...]
) -> tuple[Kind, Absorbed | None]:
    is_performance = alert.kind is AlertKind.PERFORMANCE
    kind = Kind.PERFORMANCE if is_performance else Kind.DRIFT
    is_enabled = triggers.performance if is_performance else triggers.drift
    if alert.cause.is_fault or alert.kind is AlertKind.QUALITY:
        return kind, Absorbed.DATA_FAULT
    if not alert.retrain or not is_enabled:
        return kind, Absorbed.NOT_ASKED
    return kind, Absorbed.DUPLICATE if alert.id in seen else None


def _is_due_again(state: State, alert: Alert, training: TrainingSpec) -> bool:
    answered = state.answered_at
    return answered is not None and alert.at - answered >= _millis(training.cooldown)


def _due(state: State, triggers: TriggerSpec, now: int) -> Iterator[Trigger]:
    if triggers.labels is not None and state.labels >= triggers.labels:
        yield Trigger(Kind.LABELS, f"{state.labels} labels since the last run")
    since = now if state.since is None else state.since
    if triggers.schedule is not None and now - since >= _millis(triggers.schedule):
        yield Trigger(Kind.SCHEDULE, f"every {format_duration(triggers.schedule)}")


def _millis(duration: timedelta) -> int:
    return duration // timedelta(milliseconds=1)
