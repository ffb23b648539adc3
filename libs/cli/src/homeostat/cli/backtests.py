"""What `homeostat backtest` shows: where it is while it runs, and its report as tables."""

import time
from datetime import UTC, datetime

import typer
from rich.console import Console
from rich.table import Table

from homeostat.common.recording import Slice
from homeostat.sim.report import Report, StretchLine

TELL_EVERY_SECONDS = 5.0


class Teller:
    """Says every few seconds how far the pipeline's clock is, on standard error."""

    def __init__(self) -> None:
        self._told = time.monotonic()
        self._events = 0

    def __call__(self, part: Slice) -> None:
        self._events += len(part.events)
        if time.monotonic() - self._told < TELL_EVERY_SECONDS:
            return
        self._told = time.monotonic()
        clock = datetime.fromtimestamp(part.end / 1000, UTC)
        typer.echo(f"{clock:%Y-%m-%d %H:%M}  {self._events:,} events", err=True)


def show(report: Report, console: Console) -> None:
    """The whole report, for people."""
    console.print(
        f"{report.pipeline}: {report.rows:,} rows from {_short(report.start)} "
        f"to {_short(report.end)}, seed {report.seed}"
    )
    counts = ", ".join(
        f"{count:,} {name.replace('_', ' ')}" for name, count in report.counts.items() if count
    )
    console.print(counts or "no events")
    if report.first_refusal is not None:
        console.print(f"first refusal: {report.first_refusal}")
    for table in (_alerts(report), _runs(report), _rollouts(report), _quality(report)):
        if table.row_count:
            console.print(table)
    if not report.is_repeatable:
        console.print(
            "A search was ended by training.budget.seconds: another machine may find another "
            "model. Give it fewer trials or more seconds."
        )


def _alerts(report: Report) -> Table:
    table = _table("Alerts", "when", "kind", "cause", "version", "features")
    for line in report.alerts:
        table.add_row(
            _short(line.at), line.kind, line.cause, str(line.version), ", ".join(line.features)
        )
    return table


def _runs(report: Report) -> Table:
    table = _table("Training runs", "when", "cause", "rows", "outcome", "version", "gates passed")
    for line in report.runs:
        passed = f"{sum(gate.passed for gate in line.gates)} of {len(line.gates)}"
        table.add_row(
            _short(line.at),
            line.cause,
            "" if line.rows is None else f"{line.rows:,}",
            line.outcome,
            "" if line.version is None else str(line.version),
            passed if line.gates else "",
        )
    return table


def _rollouts(report: Report) -> Table:
    table = _table("Rollouts", "when", "decision", "phase", "share", "champion", "challenger")
    for line in report.rollouts:
        table.add_row(
            _short(line.at),
            line.action,
            line.phase,
            f"{line.share:.0%}",
            "" if line.champion is None else str(line.champion),
            "" if line.challenger is None else str(line.challenger),
        )
    return table


def _quality(report: Report) -> Table:
    table = _table(
        "Live predictions, and the first champion alone on the same rows",
        "from",
        "rows",
        "positives",
        "F1",
        "static F1",
        "AP",
        "static AP",
    )
    for line in report.stretches:
        table.add_row(_short(line.start), f"{line.rows:,}", f"{line.positives:,}", *_figures(line))
    if (whole := report.pooled) is not None:
        table.add_section()
        table.add_row("pooled", f"{whole.rows:,}", f"{whole.positives:,}", *_figures(whole))
    return table


def _figures(line: StretchLine) -> tuple[str, str, str, str]:
    return (
        _figure(line.live.f1),
        _figure(line.static.f1),
        _figure(line.live.average_precision),
        _figure(line.static.average_precision),
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _short(instant: str | None) -> str:
    return "" if instant is None else instant[:16].replace("T", " ")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table
