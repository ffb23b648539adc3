"""The loop closes in process: drift, alert, training, rollout; twice the same."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from homeostat.common.pipeline import Pipeline, ScoringPath
from homeostat.common.policy import Measure
from homeostat.sim.backtest import Options, backtest, virtual
from homeostat.sim.report import Report

STEP = timedelta(hours=1)


@pytest.fixture(scope="module")
def report(stream: Path, pipeline: Pipeline) -> Report:
    return backtest(stream, pipeline, Options(step=STEP, stretch=timedelta(hours=12)))


def test_drift_is_alarmed_retrained_and_rolled_out(report: Report, drift_at: str) -> None:
    alerts = [line for line in report.alerts if line.kind == "performance"]
    alert = next(line for line in alerts if line.at > drift_at)
    retrained = next(line for line in report.runs if line.at >= alert.at and line.version)
    moves = [line for line in report.rollouts if line.at >= retrained.at]

    assert retrained.cause == "performance"
    assert [line.action for line in moves[:3]] == ["started", "advanced", "advanced"]
    promoted = next(line for line in moves if line.action == "promoted")
    assert promoted.champion == retrained.version


def test_what_was_retrained_beats_the_first_champion(report: Report) -> None:
    last = report.stretches[-1]

    assert report.pooled is not None
    assert last.live.f1 is not None
    assert last.static.f1 is not None
    assert last.live.f1 > last.static.f1 + 0.1
    assert (report.pooled.live.f1 or 0) > (report.pooled.static.f1 or 0)


def test_every_row_is_accounted_for(report: Report) -> None:
    counts = report.counts

    scored = counts["scored_champion"] + counts["scored_challenger"] + counts["unscored"]
    assert report.rows == counts["received"] + counts["refused"]
    assert counts["received"] == counts["on_time"] + counts["late_merged"] == scored
    assert counts["labels"] == counts["labels_joined"]


def test_same_seed_gives_the_same_report(
    stream: Path, pipeline: Pipeline, instant: Callable[..., int]
) -> None:
    options = Options(step=STEP, end=instant(days=1.5))

    first, second = (backtest(stream, pipeline, options) for _ in range(2))

    assert any(run.version for run in first.runs)
    assert first.is_repeatable
    assert first.document() == second.document()


def test_warm_up_trains_the_first_champion_after_its_share_of_the_rows(
    stream: Path, pipeline: Pipeline, instant: Callable[..., int]
) -> None:
    options = Options(step=STEP, warm_up=0.25, end=instant(days=2))

    report = backtest(stream, pipeline, options)

    first = report.runs[0]
    assert (first.cause, first.message) == ("hand", "first champion")
    assert report.counts["unscored"] >= 0.25 * report.rows


def test_a_simulated_pipeline_leaves_wall_time_and_people_out(pipeline: Pipeline) -> None:
    simulated = virtual(pipeline)

    assert simulated.scoring is ScoringPath.STREAM
    assert simulated.policy.approval == "automatic"
    assert Measure.LATENCY_P99_SECONDS in {rule.measure for rule in pipeline.policy.rules}
    assert Measure.LATENCY_P99_SECONDS not in {rule.measure for rule in simulated.policy.rules}
