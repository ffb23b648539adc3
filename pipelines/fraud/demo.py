"""The loop closes on one machine: a model breaks under a new fraud, and the system heals it.

make demo            # starts everything, tells the story, ends with a table, stops
KEEP=1 make demo     # leaves the stack up and prints its addresses
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from homeostat.cli.addresses import Addresses
from homeostat.cli.errors import CliError
from homeostat.cli.publishing import publish
from homeostat.cli.replay.drain import Drain
from homeostat.cli.replay.player import Doors, Player, Predicted
from homeostat.cli.replay.run import WATCHED
from homeostat.cli.stack import jars, launch
from homeostat.cli.stack.home import Home
from homeostat.cli.stack.plan import Plan
from homeostat.cli.stack.ports import PortPolicy
from homeostat.cli.stack.services import SERVICES
from homeostat.common.pipeline import Pipeline, load
from homeostat.common.recording import FileSource
from pipelines.fraud.broken_model import announce_broken_model
from pipelines.fraud.demo_report import Clock, Part, Scores, Story
from pipelines.fraud.demo_view import View, watch
from pipelines.fraud.simulator import Drift, Scenario, simulate

HERE = Path(__file__).parent
DAY = timedelta(days=1)
SCENARIO = Scenario(
    seed=8,
    days=11,
    customers=1200,
    terminals=250,
    events_per_day=3000,
    drifts=(Drift.parse("new_fraud_pattern@156h*3"),),
)
HISTORY = 5 * DAY  # what the first champion learns from; nobody asks for predictions yet
LIFE = HISTORY + timedelta(hours=2)  # training has cost its ten minutes of pipeline time by then
DRIFT = 6.5 * DAY
SABOTAGE = 10.5 * DAY  # from here on a broken challenger is rolled out
HURRY = SABOTAGE + timedelta(hours=2)
END = timedelta(days=SCENARIO.days)
START_SECONDS = 180
REST = timedelta(hours=2)
TICK = timedelta(hours=1)  # no longer than the lateness of the pipeline


def main() -> None:
    home = Home(Path(os.environ.get("HOMEOSTAT_DEMO_HOME", ".homeostat/demo")).resolve())
    is_kept = os.environ.get("KEEP", "") not in ("", "0")
    try:
        with running(home, is_kept=is_kept) as addresses, View() as view:
            story = asyncio.run(tell(addresses, home, view))
    except CliError as error:
        sys.exit(f"error: {error.message}\n  try: {error.fix}")
    sys.stdout.write("\n" + story.table() + "\n")
    if is_kept:
        lines = [f"  {name:10} {url}" for name, url in addresses.urls.items()]
        stop = f"HOMEOSTAT_HOME={home.root} homeostat down"
        sys.stdout.write("\n".join(["", "still running:", *lines, f"stop it: {stop}", ""]))
    if problems := story.problems():
        sys.exit("the loop did not close: " + "; ".join(problems))


@contextmanager
def running(home: Home, *, is_kept: bool) -> Iterator[Addresses]:
    """A fresh stack with every service; what an earlier demo left behind is ended and removed."""
    launch.stop(home)
    if home.root.exists():
        launch.purge(home)
    jars.class_path()
    plan = Plan.make(
        services=tuple(service.name for service in SERVICES),
        policy=PortPolicy.STANDARD if is_kept else PortPolicy.FREE,
    )
    with ExitStack() as stack:
        tether = None
        if not is_kept:  # the stack ends with this process, however that ends
            tether, held = os.pipe()
            stack.callback(os.close, held)
        supervisor = launch.start(home, plan, tether=tether)
        try:
            launch.wait_until_up(home, supervisor, seconds=START_SECONDS, awaited=plan.awaited)
            yield Addresses.of(home, {})
        finally:
            if not is_kept:
                launch.stop(home)


async def tell(addresses: Addresses, home: Home, view: View) -> Story:
    """The story in four acts; every figure in it is read from the services."""
    pipeline = load(HERE / "pipeline.yaml")
    view.say("simulating payments")
    table = simulate(SCENARIO)
    scores = Scores(table)
    clock = Clock(SCENARIO.start)
    view.say(f"{table.num_rows:,} payments over {SCENARIO.days:g} days; publishing the pipeline")
    await publish(pipeline, bootstrap_servers=addresses.kafka)
    async with (
        httpx.AsyncClient(timeout=30) as http,
        Drain(
            pipeline.name,
            bootstrap_servers=addresses.kafka,
            services={name: addresses.urls[name] for name in WATCHED},
        ) as drain,
    ):
        watcher = asyncio.create_task(watch(view, http, addresses, pipeline.name))
        try:
            with file_of(table) as source:
                stage = Stage(addresses, pipeline.name, drain, source(pipeline), scores, view)
                await stage.play("learning from history", timedelta(0), HISTORY, asks=False)
                await first_champion(http, addresses, pipeline.name, drain, view)
                await stage.play("crowning it", HISTORY, LIFE, asks=False)
                parts = [await stage.play("serving; a new fraud appears on day 6", LIFE, SABOTAGE)]
                broken = await announce_broken_model(addresses, pipeline.name, home, http)
                parts.append(await stage.play("a broken model is approved", SABOTAGE, HURRY))
                await hurry(http, addresses, pipeline.name, broken, drain)
                parts.append(await stage.play("promoted past its shadow by hand", HURRY, END))
        finally:
            watcher.cancel()
        story = await Story.read(http, addresses, pipeline.name, clock, drift_at=DRIFT)
    story.tell_scores(scores, parts, broken=broken)
    return story


@contextmanager
def file_of(table: pa.Table) -> Iterator[Callable[[Pipeline], FileSource]]:
    """The simulated stream as a file, as somebody's own data would be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "payments.parquet"
        pq.write_table(table, path)
        yield lambda pipeline: FileSource(path, pipeline)


class Stage:
    """Plays parts of the stream one after another."""

    def __init__(
        self,
        addresses: Addresses,
        pipeline: str,
        drain: Drain,
        source: FileSource,
        scores: Scores,
        view: View,
    ) -> None:
        self._addresses = addresses
        self._pipeline = pipeline
        self._drain = drain
        self._source = source
        self._scores = scores
        self._view = view

    async def play(
        self, title: str, begin: timedelta, end: timedelta, *, asks: bool = True
    ) -> Part:
        """Play the events in ``[begin, end)`` of the scenario; ``asks``: for their predictions."""
        self._view.say(title)
        urls = self._addresses.urls
        doors = Doors(
            self._pipeline,
            urls["ingest"],
            self._addresses.replay_token,
            urls["router"] if asks else None,
        )
        player = Player(doors, self._drain, rest_every=_millis(REST), on_predictions=self._remember)
        origin = round(SCENARIO.start.timestamp() * 1000)
        tick = TICK if asks else timedelta(hours=2)
        slices = self._source.slices(
            _millis(tick), start=origin + _millis(begin), end=origin + _millis(end)
        )
        report = await player.play(slices, on_slice=self._view.progress)
        if report.refused:
            raise CliError(f"ingest refused {report.refused} rows: {report.first_refusal}")
        return Part(begin, end, report)

    def _remember(self, rows: Sequence[dict[str, Any]], answers: Sequence[Predicted]) -> None:
        self._scores.add([row["transaction_id"] for row in rows], answers)


async def first_champion(
    http: httpx.AsyncClient, addresses: Addresses, pipeline: str, drain: Drain, view: View
) -> None:
    """Train by hand, once, and wait until the router answers with it."""
    view.say("training the first champion")
    runs = f"{addresses.urls['trainer']}/v1/pipelines/{pipeline}/runs"
    (await http.post(runs, json={"cause": "first champion"})).raise_for_status()
    await drain.wait()
    run = (await http.get(runs)).raise_for_status().json()["runs"][0]
    if run["state"] != "done":
        raise CliError(f"the first champion was {run['state']}: {run['reason']}")


async def hurry(
    http: httpx.AsyncClient, addresses: Addresses, pipeline: str, version: int, drain: Drain
) -> None:
    """Somebody promotes the version past its shadow by hand, before the judge has seen enough."""
    base = f"{addresses.urls['judge']}/v1/pipelines/{pipeline}/rollout"

    async def order(action: str, reason: str) -> None:
        body = {"by": "somebody in a hurry", "reason": reason}
        (await http.post(f"{base}/{action}", json=body)).raise_for_status()
        await drain.wait()

    rollout = (await http.get(base)).raise_for_status().json()
    if rollout["challenger"] != version:  # another one is on its way, and ours waits for it
        await order("abort", "make way")
    await order("promote", "skip the shadow")


def _millis(duration: timedelta) -> int:
    return duration // timedelta(milliseconds=1)


if __name__ == "__main__":
    main()
