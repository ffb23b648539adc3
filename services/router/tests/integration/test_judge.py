"""The judge as a process: evidence in, snapshots out, whatever is killed in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from homeostat.cli.testing import SessionStack, audit_chain
from homeostat.common import kafka, topics
from homeostat.common.assignment import Variant
from homeostat.common.clock import SystemClock, to_millis
from homeostat.common.pipeline import Pipeline
from homeostat.common.schemas.alerts import Alert, AlertKind, Cause
from homeostat.common.schemas.audit import Record
from homeostat.common.schemas.ledger import LedgerBatch, Path, Prediction, encode_row
from homeostat.common.schemas.models import ModelVersion
from homeostat.common.schemas.rollouts import RolloutSnapshot, Trip

pytestmark = [pytest.mark.integration, pytest.mark.timeout(550)]
MakePipeline = Callable[..., Pipeline]
MakeVersion = Callable[..., ModelVersion]
ROLLOUT = {"steps": [50, 100], "hold": "0s", "min_samples": 20, "holdback": 0.0}


def row(
    pipeline: str, rollout: str, variant: Variant, number: int, *, at: int, error: str | None
) -> Prediction:
    return Prediction(
        prediction_id=f"{variant}-{number}",
        event_id=str(number),
        unit=f"c-{number}",
        event_time=at,
        at=at,
        path=Path.REQUEST,
        is_primary=True,
        variant=variant,
        version=1 if variant is Variant.CHAMPION else 2,
        rollout=rollout,
        propensity=0.5,
        score=None if error else 0.3,
        decision=None if error else False,
        vector=(1.0,),
        statuses=(0,),
        definition_hash=pipeline,
        latency_us=1_500,
        error=error,
    )


class Ledger:
    """Writes what inference would write about a rollout in flight."""

    def __init__(self, board: Any, pipeline: str) -> None:
        self._board = board
        self._pipeline = pipeline

    async def write(
        self,
        rollout: str,
        *,
        rows: int = 30,
        error: str | None = None,
        at: int | None = None,
        is_arrow: bool = False,
    ) -> None:
        """``rows`` of each arm; ``error`` is the challenger's; ``at`` makes them replayed."""
        when = at if at is not None else to_millis(SystemClock().now())
        both = [
            row(self._pipeline, rollout, variant, number, at=when, error=failed)
            for number in range(rows)
            for variant, failed in ((Variant.CHAMPION, None), (Variant.CHALLENGER, error))
        ]
        encoded = LedgerBatch.of(both).encode() if is_arrow else map(encode_row, both)
        stamp = ((kafka.AVAILABLE_AT, str(at).encode()),) if at is not None else ()
        topic = topics.PREDICTIONS.of(self._pipeline)
        for value in encoded:
            await self._board.send(topic, "unit", value, stamp)


def rollout_path(pipeline: Pipeline) -> str:
    return f"/v1/pipelines/{pipeline.name}/rollout"


def until_rollout(judge: Any, pipeline: Pipeline, **wanted: Any) -> RolloutSnapshot:
    """Wait until the judge's rollout has the wanted members."""

    def holds(answer: httpx.Response) -> bool:
        return answer.status_code == 200 and wanted.items() <= answer.json().items()

    answer = judge.until(rollout_path(pipeline), holds)
    return msgspec.json.decode(answer.content, type=RolloutSnapshot)


def decided(judge: Any, pipeline: Pipeline) -> list[Record]:
    """The decisions about a pipeline, oldest first."""
    answer = httpx.get(f"{judge.url}{rollout_path(pipeline)}/decisions")
    records = msgspec.json.decode(answer.content, type=dict[str, list[Record]])["decisions"]
    return records[::-1]


def actions(judge: Any, pipeline: Pipeline) -> list[str]:
    return [record.action for record in decided(judge, pipeline)]


def command(judge: Any, pipeline: Pipeline, action: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{judge.url}{rollout_path(pipeline)}/{action}", json=body)


@pytest.fixture
async def pipeline(board: Any, make_pipeline: MakePipeline) -> Pipeline:
    pipeline = make_pipeline(rollout=ROLLOUT)
    await board.pipeline(pipeline)
    return pipeline


async def begin(
    board: Any, judge: Any, pipeline: Pipeline, make_version: MakeVersion
) -> RolloutSnapshot:
    """Champion 1, and version 2 at its first step."""
    await board.version(make_version(pipeline.name, 1))
    until_rollout(judge, pipeline, champion=1)
    await board.version(make_version(pipeline.name, 2))
    return until_rollout(judge, pipeline, challenger=2, share=0.5)


@pytest.fixture
async def in_flight(
    board: Any, judge: Any, pipeline: Pipeline, make_version: MakeVersion
) -> RolloutSnapshot:
    judge.start()
    return await begin(board, judge, pipeline, make_version)


async def test_healthy_version_climbs_to_champion_and_each_decision_is_chained_evidence(
    stack: SessionStack,
    board: Any,
    pipeline: Pipeline,
    in_flight: RolloutSnapshot,
    judge: Any,
) -> None:
    snapshot = in_flight
    ledger = Ledger(board, pipeline.name)

    await ledger.write(snapshot.rollout)
    until_rollout(judge, pipeline, share=1.0)
    await ledger.write(snapshot.rollout, is_arrow=True)
    ended = until_rollout(judge, pipeline, phase="champion", champion=2)

    assert ended.share == 0.0
    records = decided(judge, pipeline)
    assert [record.action for record in records] == ["crowned", "started", "advanced", "promoted"]
    chain = await audit_chain(stack.kafka, records[-1])
    assert [record for record in chain if record.pipeline == pipeline.name] == records
    assert records[2].evidence["challenger"]["samples"] >= 20
    published = await snapshots(stack, pipeline.name, until_generation=ended.generation)
    assert [item.share for item in published] == [0.0, 0.5, 1.0, 0.0]
    assert len({item.order for item in published}) == len(published)


async def snapshots(
    stack: SessionStack, pipeline: str, *, until_generation: int
) -> list[RolloutSnapshot]:
    """What routers were told, each generation once, in order."""
    told: dict[int, RolloutSnapshot] = {}
    reader = kafka.consumer(topics.ROLLOUTS.of(), bootstrap_servers=stack.kafka, client_id="tests")
    await reader.start()
    try:
        async with asyncio.timeout(30):
            async for record in reader:
                if record.value is None:  # another test's pipeline is gone
                    continue
                snapshot = msgspec.json.decode(record.value, type=RolloutSnapshot)
                if snapshot.pipeline == pipeline:
                    told.setdefault(snapshot.generation, snapshot)
                if until_generation in told:
                    break
    finally:
        await reader.stop()
    return [told[generation] for generation in sorted(told)]


async def test_failing_version_is_rolled_back_with_the_figures(
    board: Any, pipeline: Pipeline, in_flight: RolloutSnapshot, judge: Any
) -> None:
    snapshot = in_flight

    await Ledger(board, pipeline.name).write(snapshot.rollout, rows=120, error="boom")
    ended = until_rollout(judge, pipeline, phase="rolled_back")

    assert (ended.champion, ended.share) == (1, 0.0)
    assert ended.reason == "error rate 100.00% is above 1.00%"


async def test_trip_is_decided_on_and_listed_as_seen(
    board: Any, pipeline: Pipeline, in_flight: RolloutSnapshot, judge: Any
) -> None:
    snapshot = in_flight
    trip = Trip(pipeline.name, snapshot.rollout, 2, "5 failures in a row", 1, "router-a")

    await board.send(topics.ROLLOUT_TRIPS.of(), pipeline.name, msgspec.json.encode(trip))
    ended = until_rollout(judge, pipeline, phase="rolled_back")

    assert ended.seen_trips == (trip.key,)
    assert ended.reason == "the guard of router-a tripped: 5 failures in a row"


async def test_skew_holds_a_healthy_version_until_it_is_cleared(
    board: Any, pipeline: Pipeline, in_flight: RolloutSnapshot, judge: Any
) -> None:
    snapshot = in_flight
    skew = Alert(
        id="skew-1",
        pipeline=pipeline.name,
        kind=AlertKind.SKEW,
        cause=Cause.DATA_FAULT,
        at=1,
        window_start=0,
        window_end=1,
        version=1,
        findings=(),
        retrain=False,
        message="card 'c1' was served 2.0, its log folds to 1.0",
    )

    def is_held(answer: httpx.Response) -> bool:
        judgement = answer.json()["judgement"] or {}
        return judgement.get("reason") == f"held by a skew: {skew.message}"

    await board.send(topics.ALERTS.of(pipeline.name), pipeline.name, msgspec.json.encode(skew))
    judge.until(f"{rollout_path(pipeline)}/analysis", lambda answer: answer.json()["skew"])
    await Ledger(board, pipeline.name).write(snapshot.rollout)
    held = judge.until(f"{rollout_path(pipeline)}/analysis", is_held).json()
    promoted = command(judge, pipeline, "promote", by="ann")
    cleared = command(judge, pipeline, "clear", by="ann", reason="a bad disk")
    again = command(judge, pipeline, "clear", by="ann")

    assert held["rollout"]["generation"] == snapshot.generation
    assert held["skew"] == skew.message
    assert (promoted.status_code, cleared.status_code, again.status_code) == (409, 200, 409)
    until_rollout(judge, pipeline, share=1.0)
    assert actions(judge, pipeline)[2:] == ["skewed", "cleared", "advanced"]


async def test_command_for_an_old_generation_gets_409_with_the_state(
    pipeline: Pipeline, in_flight: RolloutSnapshot, judge: Any
) -> None:
    snapshot = in_flight

    paused = command(judge, pipeline, "pause", generation=snapshot.generation, by="ann")
    late = command(judge, pipeline, "abort", generation=snapshot.generation, by="bob")
    informed = command(
        judge, pipeline, "abort", generation=late.json()["state"]["generation"], by="bob"
    )

    assert (paused.status_code, late.status_code, informed.status_code) == (200, 409, 200)
    assert late.json()["state"]["generation"] == paused.json()["generation"]
    assert informed.json()["phase"] == "rolled_back"
    assert actions(judge, pipeline) == ["crowned", "started", "paused", "aborted"]


async def test_rejected_version_starts_again_only_by_force(
    pipeline: Pipeline, in_flight: RolloutSnapshot, judge: Any
) -> None:
    snapshot = in_flight
    command(judge, pipeline, "abort")

    refused = command(judge, pipeline, "start", version=2)
    forced = command(judge, pipeline, "start", version=2, force=True, reason="the input was wrong")

    assert (refused.status_code, forced.status_code) == (409, 200)
    assert "force" in refused.json()["fix"]
    assert forced.json()["rollout"] != snapshot.rollout


async def test_replayed_clock_makes_versions_due_and_progress_tells_how_far(
    board: Any,
    pipeline: Pipeline,
    make_version: MakeVersion,
    in_flight: RolloutSnapshot,
    judge: Any,
) -> None:
    snapshot = in_flight
    command(judge, pipeline, "abort")
    start = snapshot.updated_at + 1_000
    await Ledger(board, pipeline.name).write(snapshot.rollout, rows=5, at=start)
    path = f"/v1/pipelines/{pipeline.name}/progress"
    judge.until(path, lambda answer: answer.json()["clock"] == start)

    await board.version(make_version(pipeline.name, 3, available_at=start + 60_000))
    await Ledger(board, pipeline.name).write(snapshot.rollout, rows=5, at=start + 59_999)
    early = judge.until(path, lambda answer: answer.json()["clock"] == start + 59_999).json()
    before = until_rollout(judge, pipeline, phase="rolled_back")
    await Ledger(board, pipeline.name).write(snapshot.rollout, rows=5, at=start + 60_000)
    after = until_rollout(judge, pipeline, challenger=3)

    assert early["pending"] == []
    assert (before.challenger, after.updated_at) == (2, start + 60_000)
    predictions = topics.PREDICTIONS.of(pipeline.name)
    # The clock moves with the first row of a write; the position, with the last.
    rest = judge.until(
        path, lambda answer: sum(answer.json()["positions"][predictions].values()) >= 30
    ).json()
    assert sum(rest["positions"][predictions].values()) == 30
    assert judge.until(path, lambda answer: answer.json()["pending"] == [])


async def test_killed_judge_is_succeeded_by_the_standby_where_it_was(
    stack: SessionStack,
    board: Any,
    pipeline: Pipeline,
    make_version: MakeVersion,
    make_judge: Callable[[str], Any],
) -> None:
    database_url = stack.fresh_database()
    first, standby = make_judge(database_url), make_judge(database_url)
    first.start()
    snapshot = await begin(board, first, pipeline, make_version)
    ledger = Ledger(board, pipeline.name)
    standby.start()
    progress = f"/v1/pipelines/{pipeline.name}/progress"
    refused = standby.until(progress, lambda answer: answer.status_code == 503)
    await ledger.write(snapshot.rollout)
    until_rollout(first, pipeline, share=1.0)

    first.kill()
    await ledger.write(snapshot.rollout, rows=10)
    standby.until(progress, lambda answer: answer.status_code == 200)
    resumed = until_rollout(standby, pipeline, share=1.0)
    standby.until(
        f"{rollout_path(pipeline)}/analysis",
        lambda answer: answer.json()["observation"]["challenger"]["samples"] == 10,
    )
    await ledger.write(snapshot.rollout, rows=10)
    until_rollout(standby, pipeline, phase="champion", champion=2)

    assert refused.json()["code"] == "STANDING_BY"
    assert (resumed.rollout, resumed.generation) == (snapshot.rollout, snapshot.generation + 1)
    assert resumed.epoch > snapshot.epoch
    records = decided(standby, pipeline)
    assert [record.action for record in records] == ["crowned", "started", "advanced", "promoted"]
    assert records[-1].evidence["challenger"]["samples"] == 20
    chain = await audit_chain(stack.kafka, records[-1])
    assert [record for record in chain if record.pipeline == pipeline.name] == records


async def test_postgres_away_freezes_the_judge_and_its_return_needs_nobody(
    stack: SessionStack, board: Any, pipeline: Pipeline, make_version: MakeVersion, make_judge: Any
) -> None:
    async with Cable(stack.database_url) as cable:
        judge = make_judge(cable.url(stack.fresh_database()))
        await asyncio.to_thread(judge.start)
        await board.version(make_version(pipeline.name, 1))
        await asyncio.to_thread(until_rollout, judge, pipeline, champion=1)

        await cable.cut()
        await board.version(make_version(pipeline.name, 2))
        unready = await asyncio.to_thread(
            judge.until, "/readyz", lambda answer: answer.status_code == 503
        )
        await cable.mend()
        resumed = await asyncio.to_thread(until_rollout, judge, pipeline, challenger=2)

    assert unready.json()["checks"]["office"] != "ok"
    assert resumed.champion == 1


class Cable:
    """A TCP relay to Postgres that can be cut."""

    def __init__(self, database_url: str) -> None:
        self._target = httpx.URL(database_url)
        self._server: asyncio.Server | None = None
        self._wires: set[asyncio.Task[None]] = set()
        self._port = 0

    async def __aenter__(self) -> Cable:
        await self.mend()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.cut()

    def url(self, database_url: str) -> str:
        return str(httpx.URL(database_url).copy_with(host="127.0.0.1", port=self._port))

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for wire in self._wires:
            wire.cancel()
        await asyncio.gather(*self._wires, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, down = await asyncio.open_connection(self._target.host, self._target.port)
        for source, sink in ((reader, down), (up, writer)):
            wire = asyncio.create_task(self._relay(source, sink))
            self._wires.add(wire)
            wire.add_done_callback(self._wires.discard)

    async def _relay(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while part := await source.read(65_536):
                sink.write(part)
                await sink.drain()
        except ConnectionError:
            return
        finally:
            sink.close()
