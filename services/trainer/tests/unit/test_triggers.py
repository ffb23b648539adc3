"""At most one run comes of whatever asks for one."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from homeostat.common.pipeline.spec import TrainingSpec, TriggerSpec
from homeostat.common.schemas.alerts import Alert, AlertKind, Cause
from homeostat.trainer.triggers import Absorbed, Kind, Signals, State, Step, step

NOW = 1_700_000_000_000
HOUR = 3_600_000
TRAINING = TrainingSpec(cooldown=timedelta(minutes=30))


def alert(
    number: int = 0,
    *,
    kind: AlertKind = AlertKind.DATA_DRIFT,
    cause: Cause = Cause.COVARIATE,
    retrain: bool = True,
) -> Alert:
    return Alert(
        f"a{number}", "fraud", kind, cause, NOW, NOW - HOUR, NOW, 1, (), retrain, "amount moved"
    )


def take(
    signals: Signals,
    *,
    state: State | None = None,
    now: int = NOW,
    training: TrainingSpec = TRAINING,
    is_running: bool = False,
) -> Step:
    return step(state or State(), signals, now=now, training=training, is_running=is_running)


def test_a_hundred_alerts_at_once_make_one_run() -> None:
    after = take(Signals(alerts=tuple(map(alert, range(100)))))

    assert after.start is not None
    assert (after.start.kind, after.start.id) == (Kind.DRIFT, "a0")
    assert after.absorbed == ((Kind.DRIFT, Absorbed.RUNNING),) * 99


def test_a_hundred_alerts_one_after_another_make_one_run() -> None:
    state, starts = State(), 0
    for number in range(100):
        after = take(
            Signals(alerts=(alert(number),)),
            state=state,
            now=NOW + number * 20,
            is_running=starts > 0 and number < 50,
        )
        state, starts = after.state, starts + (after.start is not None)

    assert starts == 1


def test_the_cooldown_counts_pipeline_time_and_ends() -> None:
    first = take(Signals(alerts=(alert(1),)))
    during = take(Signals(alerts=(alert(2),)), state=first.state, now=NOW + HOUR // 2 - 1)
    after = take(Signals(alerts=(alert(3),)), state=during.state, now=NOW + HOUR // 2)

    assert during.start is None
    assert during.absorbed == ((Kind.DRIFT, Absorbed.COOLDOWN),)
    assert after.start is not None


def test_an_alert_that_is_sent_again_does_not_start_a_second_run() -> None:
    first = take(Signals(alerts=(alert(1),)))
    again = take(Signals(alerts=(alert(1),)), state=first.state, now=NOW + 10 * HOUR)

    assert again.start is None
    assert again.absorbed == ((Kind.DRIFT, Absorbed.DUPLICATE),)


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (alert(cause=Cause.DATA_FAULT), Absorbed.DATA_FAULT),
        (alert(cause=Cause.UNIT_CHANGE), Absorbed.DATA_FAULT),
        (alert(kind=AlertKind.QUALITY), Absorbed.DATA_FAULT),
        (alert(retrain=False), Absorbed.NOT_ASKED),
    ],
)
def test_a_fault_in_the_data_never_retrains(refused: Alert, reason: Absorbed) -> None:
    after = take(Signals(alerts=(refused,)))

    assert after.start is None
    assert [why for _, why in after.absorbed] == [reason]


def test_a_pipeline_that_wants_no_drift_retrains_still_answers_to_performance() -> None:
    training = TrainingSpec(triggers=TriggerSpec(drift=False))
    performance = alert(2, kind=AlertKind.PERFORMANCE, cause=Cause.CONCEPT)

    after = take(Signals(alerts=(alert(1), performance)), training=training)

    assert after.start is not None
    assert after.start.kind is Kind.PERFORMANCE
    assert after.absorbed == ((Kind.DRIFT, Absorbed.NOT_ASKED),)


def test_labels_count_over_batches_and_start_anew_after_a_run() -> None:
    training = TrainingSpec(triggers=TriggerSpec(labels=1000))

    short = take(Signals(outcomes=999), training=training)
    full = take(Signals(outcomes=1), training=training, state=short.state)
    running = take(Signals(outcomes=5), training=training, state=full.state, is_running=True)

    assert short.start is None
    assert full.start is not None
    assert full.start.kind is Kind.LABELS
    assert running.state.labels == 5


def test_labels_that_come_during_a_run_start_the_next_one_when_it_has_cooled() -> None:
    training = TrainingSpec(triggers=TriggerSpec(labels=10), cooldown=timedelta(hours=1))
    running = take(Signals(outcomes=50), training=training, is_running=True)
    cooling = msgspec.structs.replace(running.state, last_run_at=NOW)

    early = take(Signals(), training=training, state=cooling, now=NOW + HOUR - 1)
    late = take(Signals(), training=training, state=early.state, now=NOW + HOUR)

    assert (early.start, late.start and late.start.kind) == (None, Kind.LABELS)


def test_the_schedule_counts_from_a_replay_that_begins_in_the_past() -> None:
    training = TrainingSpec(triggers=TriggerSpec(schedule=timedelta(hours=1)))
    on_the_wall = take(Signals(), training=training).state
    past = NOW - 1_000 * HOUR

    begun = take(Signals(), state=on_the_wall, now=past, training=training)
    due = take(Signals(), state=begun.state, now=past + HOUR, training=training)

    assert begun.start is None
    assert due.start is not None
    assert due.start.kind is Kind.SCHEDULE


def test_an_alert_that_comes_back_after_the_cooldown_is_heard_though_the_first_was_heard_late() -> (
    None
):
    again = msgspec.structs.replace(alert(2), at=NOW + HOUR // 2)
    early = msgspec.structs.replace(alert(3), at=NOW + HOUR // 2 - 1)

    first = take(Signals(alerts=(alert(1),)), now=NOW + HOUR // 4)  # taken in a quarter later
    heard = take(Signals(alerts=(again,)), state=first.state, now=NOW + HOUR // 2)
    absorbed = take(Signals(alerts=(early,)), state=first.state, now=NOW + HOUR // 2)

    assert first.start is not None
    assert heard.start is not None
    assert absorbed.absorbed == ((Kind.DRIFT, Absorbed.COOLDOWN),)


def test_the_schedule_counts_from_the_last_run() -> None:
    training = TrainingSpec(triggers=TriggerSpec(schedule=timedelta(hours=1)))

    first = take(Signals(), training=training)
    due = take(Signals(), training=training, state=first.state, now=NOW + HOUR)
    again = take(Signals(), training=training, state=due.state, now=NOW + 2 * HOUR - 1)

    assert (first.start, again.start) == (None, None)
    assert due.start is not None
    assert (due.start.kind, due.start.message) == (Kind.SCHEDULE, "every 1h")


def test_a_person_may_start_during_the_cooldown_but_not_beside_a_run() -> None:
    cooling = State(last_run_at=NOW)

    alone = take(Signals(by_hand="new features"), state=cooling)
    beside = take(Signals(by_hand="new features"), state=cooling, is_running=True)

    assert alone.start is not None
    assert (alone.start.kind, alone.start.message) == (Kind.HAND, "new features")
    assert beside.start is None
    assert beside.absorbed == ((Kind.HAND, Absorbed.RUNNING),)
