"""A recorded stream through a simulation: what would have happened, and how good it would have
been.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from homeostat.common.errors import InvalidEvent
from homeostat.common.pipeline import Pipeline, ScoringPath
from homeostat.common.policy import Measure
from homeostat.common.recording import FileSource, Slice
from homeostat.sim.report import AlertLine, MoveLine, Report, RunLine, StretchLine, instant
from homeostat.sim.scorecard import Scorecard
from homeostat.sim.simulation import Simulation
from homeostat.sim.warm_up import WarmUp


@dataclass(frozen=True)
class Options:
    """``step``: how much event time is sent at once; ``warm_up``: the share of the rows after which
    the first champion is asked for (``None``: as soon as there are labels enough); ``stretch``: the
    width of a line of the report.
    """

    seed: int = 7
    step: timedelta = timedelta(minutes=15)
    warm_up: float | None = None
    stretch: timedelta = timedelta(days=1)
    start: int | None = None  # epoch ms
    end: int | None = None


def backtest(
    file: Path,
    pipeline: Pipeline,
    options: Options = Options(),
    *,
    on_slice: Callable[[Slice], None] = lambda _part: None,
) -> Report:
    """Run a file through the pipeline's loop: the same file, spec and options, the same report.

    Raises:
        InvalidInput: the file does not fit the pipeline.
    """
    source = FileSource(file, pipeline)
    with TemporaryDirectory(prefix="homeostat-backtest-") as folder:
        simulation = Simulation(virtual(pipeline), seed=options.seed, store=Path(folder))
        scorecard = Scorecard(simulation.world, simulation.registry)
        simulation.join(scorecard)
        rows = None if options.warm_up is None else round(options.warm_up * len(source))
        simulation.join(WarmUp(simulation.world, simulation.trainer, rows=rows))
        refused = _play(simulation, source, options, on_slice)
    return _report(simulation, scorecard, source, options, refused)


def virtual(pipeline: Pipeline) -> Pipeline:
    """The pipeline without what only a real machine or a person can give.

    It is scored on the stream path, whose vectors are those of a request at the event's instant;
    rules about wall time are left out, since none passes here; and nobody is asked for approval.
    """
    rules = tuple(
        rule for rule in pipeline.policy.rules if rule.measure is not Measure.LATENCY_P99_SECONDS
    )
    policy = pipeline.policy.model_copy(update={"rules": rules, "approval": "automatic"})
    return pipeline.model_copy(update={"scoring": ScoringPath.STREAM, "policy": policy})


def _play(
    simulation: Simulation, source: FileSource, options: Options, on_slice: Callable[[Slice], None]
) -> list[InvalidEvent]:
    """Each slice: events, then the labels that became known, then time passes."""
    refused: list[InvalidEvent] = []
    length = options.step // timedelta(milliseconds=1)
    for part in source.slices(length, start=options.start, end=options.end):
        refused += simulation.send_events(part.events)
        simulation.settle()
        simulation.send_labels(part.labels)
        simulation.settle()
        simulation.advance_to(part.end)
        on_slice(part)
    return refused


def _report(
    simulation: Simulation,
    scorecard: Scorecard,
    source: FileSource,
    options: Options,
    refused: list[InvalidEvent],
) -> Report:
    scores = scorecard.scores(source.truth())
    whole = scores.whole()
    width = options.stretch // timedelta(milliseconds=1)
    runs = simulation.trainer.runs
    return Report(
        pipeline=simulation.world.pipeline.name,
        seed=options.seed,
        rows=len(source),
        start=instant(int(source.times[0])) if len(source) else None,
        end=instant(int(source.times[-1])) if len(source) else None,
        counts={"refused": len(refused), **dict(sorted(simulation.world.counts.items()))},
        first_refusal=str(refused[0]) if refused else None,
        alerts=tuple(AlertLine.of(alert) for alert in simulation.watch.alerts),
        runs=tuple(RunLine.of(run) for run in runs),
        rollouts=tuple(MoveLine.of(move) for move in simulation.judge.moves),
        stretches=tuple(StretchLine.of(each) for each in scores.stretches(width)),
        pooled=None if whole is None else StretchLine.of(whole),
        is_repeatable=not any(run.was_cut_short for run in runs),
    )
