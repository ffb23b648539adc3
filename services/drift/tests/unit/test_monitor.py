"""The step over a synthetic stream: what alarms, what does not, and what may retrain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from homeostat.common.pipeline import Pipeline
from homeostat.common.schemas.alerts import Alert, AlertKind, Cause
from homeostat.common.schemas.labels import Outcome
from homeostat.common.schemas.ledger import LedgerBatch, Prediction
from homeostat.common.schemas.models import Distribution
from homeostat.drift import snapshot
from homeostat.drift.columns import outcomes_of, read_predictions
from homeostat.drift.detectors import Verdict
from homeostat.drift.monitor import Labels, Monitor, State, Tick
from homeostat.drift.window import Baseline

HOUR = 3_600_000


class Stream:
    """Feeds hours of traffic to a monitor, each outcome when its time has come."""

    def __init__(self, traffic: Any, **drift: Any) -> None:
        version = traffic.version()
        baseline = Baseline.of(version.version, version.features, version.reference)
        self.traffic = traffic
        self.monitor = Monitor(traffic.pipeline(**drift), champion=1, baselines={1: baseline})
        self.state = State()
        self.alerts: list[Alert] = []
        self.waiting: list[Outcome] = []
        self.rows: list[Prediction] = []
        self.positives: set[str] = set()

    def hours(self, numbers: range, **changes: Any) -> list[Alert]:
        before = len(self.alerts)
        for number in numbers:
            predictions, outcomes = self.traffic.hour(number, **changes)
            self.rows += predictions
            self.positives |= {each.id for each in outcomes}
            self.waiting += outcomes
            now = predictions[-1].at
            self.take(read(predictions), now)
            due = [each for each in self.waiting if each.available_at <= now]
            self.waiting = [each for each in self.waiting if each.available_at > now]
            if due:
                until = max(each.available_at for each in due)
                self.take(Labels(outcomes_of(due), until), now)
        return self.alerts[before:]

    def take(self, item: Any, now: int) -> None:
        self.state, outputs = self.monitor.step(self.state, item, now)
        self.alerts += outputs.alerts


def read(predictions: list[Prediction]) -> Any:
    rows, refused = read_predictions(list(LedgerBatch.of(predictions).encode()))
    assert not refused
    return rows


def test_a_stationary_stream_raises_nothing(traffic: Any) -> None:
    stream = Stream(traffic)

    alerts = stream.hours(range(72))

    assert alerts == []
    assert {column.verdict for column in stream.state.reports[1].columns} == {Verdict.STABLE}
    assert stream.state.performance[-1].verdict is Verdict.STABLE


def test_a_population_shift_is_one_covariate_alert_that_retrains(traffic: Any) -> None:
    stream = Stream(traffic)
    stream.hours(range(5))

    alerts = stream.hours(range(5, 14), shift=1.0)

    assert [(each.kind, each.cause, each.retrain) for each in alerts] == [
        (AlertKind.DATA_DRIFT, Cause.COVARIATE, True)
    ]
    assert {finding.subject for finding in alerts[0].findings} == {"amount_now"}


def test_a_unit_change_pages_people_and_never_retrains(traffic: Any) -> None:
    stream = Stream(traffic)
    stream.hours(range(5))

    alerts = stream.hours(range(5, 10), scale=100)
    aftermath = stream.hours(range(10, 14))

    assert [(each.kind, each.cause, each.retrain) for each in alerts] == [
        (AlertKind.QUALITY, Cause.UNIT_CHANGE, False)
    ]
    assert [(each.subject, each.value) for each in alerts[0].findings] == [("amount_now", 100.0)]
    assert aftermath == []


def test_a_null_burst_is_a_data_fault(traffic: Any) -> None:
    stream = Stream(traffic)
    stream.hours(range(5))

    alerts = stream.hours(range(5, 10), null_share=0.4)

    assert [(each.kind, each.cause, each.retrain) for each in alerts] == [
        (AlertKind.QUALITY, Cause.DATA_FAULT, False)
    ]


def test_inverted_labels_are_a_concept_alert_once_they_are_mature(traffic: Any) -> None:
    stream = Stream(traffic)
    stream.hours(range(24))

    early = stream.hours(range(24, 30), is_inverted=True)
    alerts = stream.hours(range(30, 42), is_inverted=True)

    assert early == []
    assert [(each.kind, each.cause, each.retrain) for each in alerts][:1] == [
        (AlertKind.PERFORMANCE, Cause.CONCEPT, True)
    ]


def test_f1_from_delayed_labels_equals_brute_force(traffic: Any) -> None:
    stream = Stream(traffic)
    stream.hours(range(40))
    judged = stream.state.performance[-1]

    rows = [row for row in stream.rows if judged.start <= row.event_time < judged.end]
    said = np.array([row.decision for row in rows])
    true = np.array([row.event_id in stream.positives for row in rows])
    assert judged.estimate.samples == len(rows)
    assert judged.estimate.value == 2 * (said & true).sum() / (said.sum() + true.sum())


def test_a_feature_without_a_usable_reference_is_insufficient_never_stable(traffic: Any) -> None:
    stream = Stream(traffic)
    version = traffic.version()
    broken = msgspec.structs.replace(
        version.reference,
        features={"amount_now": Distribution(edges=(2.0, 1.0), counts=(1, 2, 3))},
    )
    baseline = Baseline.of(1, version.features, broken)
    stream.monitor = replace(stream.monitor, baselines={1: baseline})

    alerts = stream.hours(range(4), shift=2.0)

    assert alerts == []
    assert baseline.problems.keys() == {"amount_now", "visits"}
    verdicts = {each.name: each.verdict for each in stream.state.reports[1].columns}
    assert verdicts == {
        "amount_now": Verdict.INSUFFICIENT,
        "visits": Verdict.INSUFFICIENT,
        "score": Verdict.STABLE,
    }


def test_rows_of_a_version_without_reference_are_counted(traffic: Any) -> None:
    stream = Stream(traffic)
    predictions, _ = traffic.hour(0, version=9)

    state, outputs = stream.monitor.step(State(), read(predictions), predictions[-1].at)

    assert outputs.without_reference == len(predictions)
    assert state.windows == {}


def test_silent_labels_stop_the_verdicts_on_performance(traffic: Any) -> None:
    stream = Stream(traffic)
    stream.hours(range(24))
    judged = stream.state.performance
    for number in range(24, 48):
        predictions, _ = traffic.hour(number)
        stream.take(read(predictions), predictions[-1].at)

    stream.take(Tick(), predictions[-1].at)

    assert stream.state.performance == judged
    assert stream.alerts == []


def test_a_new_champion_starts_with_a_clean_slate(traffic: Any) -> None:
    stream = Stream(traffic)
    stream.hours(range(8), shift=1.0)
    version = traffic.version(2)
    baseline = Baseline.of(2, version.features, version.reference)

    stream.monitor = replace(stream.monitor, champion=2, baselines={2: baseline})
    alerts = stream.hours(range(8, 12), shift=1.0, version=2)

    assert [(each.version, each.cause) for each in stream.alerts] == [
        (1, Cause.COVARIATE),
        (2, Cause.COVARIATE),
    ]
    assert alerts == stream.alerts[1:]


def test_calendar_features_have_no_verdict(traffic: Any) -> None:
    stream = Stream(traffic)
    spec = traffic.pipeline().model_dump(mode="json", by_alias=True)
    spec["features"]["amount_now"] = {"expression": "hour(event_time, 'UTC')"}
    stream.monitor = replace(stream.monitor, pipeline=Pipeline.model_validate(spec))

    alerts = stream.hours(range(6), shift=2.0)

    assert alerts == []
    verdicts = {each.name: each.verdict for each in stream.state.reports[1].columns}
    assert verdicts["amount_now"] is Verdict.INSUFFICIENT


def test_a_state_survives_being_written_and_read(traffic: Any) -> None:
    stream = Stream(traffic)
    stream.hours(range(30), shift=1.0)

    kept = snapshot.decode(snapshot.encode(stream.state))

    assert snapshot.encode(kept) == snapshot.encode(stream.state)
    assert kept.incidents == stream.state.incidents
    assert kept.performance == stream.state.performance
    assert kept.reports == stream.state.reports


def test_the_same_rows_in_smaller_batches_give_the_same_alerts(traffic: Any) -> None:
    stream = Stream(traffic)
    stream.hours(range(8), shift=1.0)
    pieces = State()
    alerts: list[Alert] = []

    for place in range(0, len(stream.rows), 77):
        rows = stream.rows[place : place + 77]
        pieces, outputs = stream.monitor.step(pieces, read(rows), rows[-1].at)
        alerts += outputs.alerts

    assert alerts == stream.alerts
    assert pieces.reports == stream.state.reports
