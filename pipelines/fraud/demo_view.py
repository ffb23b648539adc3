"""What the demo shows while it runs: throughput, lag, drift and rollout; plain lines when piped."""

import asyncio
import sys
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import httpx
from rich.console import Console
from rich.live import Live
from rich.table import Table

from homeostat.cli.addresses import Addresses
from homeostat.cli.replay.player import Report
from homeostat.common.recording import Slice

PLAIN_EVERY_SECONDS = 10.0
POLL_SECONDS = 1.0


class View:
    """A live table on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._started = time.monotonic()
        self._told_at = 0.0
        self._lines: dict[str, str] = {"now": "starting"}

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def say(self, what: str) -> None:
        """A new act begins."""
        self._lines["now"] = what
        self._console.print(f"[{time.monotonic() - self._started:5.0f} s] {what}", markup=False)
        self._draw()

    def show(self, **lines: str) -> None:
        """Update lines of the live table."""
        self._lines |= lines
        self._draw()

    def progress(self, part: Slice, report: Report) -> None:
        at = datetime.fromtimestamp(part.end / 1000, UTC)
        rate = (report.events + report.predictions) / max(report.seconds, 0.001)
        self.show(
            clock=f"{at:%Y-%m-%d %H:%M}",
            throughput=f"{report.events:,} events, {report.labels:,} labels, "
            f"{report.predictions:,} predictions ({rate:,.0f}/s), {report.errors} errors",
        )

    def _draw(self) -> None:
        if self._console.is_terminal:
            table = Table.grid(padding=(0, 2))
            for name, value in self._lines.items():
                table.add_row(f"[bold]{name}[/bold]", value)
            self._live.update(table)
        elif time.monotonic() - self._told_at > PLAIN_EVERY_SECONDS:
            self._told_at = time.monotonic()
            seen = [f"{name}: {value}" for name, value in self._lines.items() if name != "now"]
            if seen:
                sys.stdout.write("         " + " | ".join(seen) + "\n")
                sys.stdout.flush()


async def watch(view: View, http: httpx.AsyncClient, addresses: Addresses, pipeline: str) -> None:
    """Keep the lines about drift and rollout current until cancelled."""

    async def get(service: str, path: str) -> dict[str, Any] | None:
        try:
            url = f"{addresses.urls[service]}/v1/pipelines/{pipeline}/{path}"
            response = await http.get(url)
        except httpx.TransportError:
            return None
        document: dict[str, Any] = response.json()
        return document if response.status_code == 200 else None

    while True:
        rollout = await get("judge", "rollout")
        alerts = await get("drift", "alerts?limit=1")
        runs = await get("trainer", "progress")
        if rollout is not None:
            view.show(rollout=_rollout(rollout))
        if alerts is not None:
            view.show(drift=_alarm(alerts["alerts"]))
        if runs is not None:
            pending = ", ".join(f"{each['kind']} {each['id']}" for each in runs["pending"])
            view.show(training=pending or "none")
        await asyncio.sleep(POLL_SECONDS)


def _rollout(rollout: dict[str, Any]) -> str:
    line = f"{rollout['phase']}, champion {rollout['champion'] or 'none'}"
    if rollout.get("challenger"):
        line += f", challenger {rollout['challenger']} at {rollout['share']:.0%}"
    return line


def _alarm(alerts: list[dict[str, Any]]) -> str:
    if not alerts:
        return "no alarm"
    subjects = ", ".join(finding["subject"] for finding in alerts[0]["findings"][:3])
    return f"{alerts[0]['kind']} ({subjects})"
