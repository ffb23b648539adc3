"""Real data through the running services: what breaks is healed, what does not is left alone.

Run by hand (``make real``); the data sets are found by ``HOMEOSTAT_DATASETS``.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import redis
import xgboost
from deltalake import DeltaTable

from homeostat.cli.publishing import publish
from homeostat.cli.replay.run import replay
from homeostat.cli.testing import RunningSystem, running_system
from homeostat.common import artifacts, kafka, topics
from homeostat.common.pipeline import Pipeline, load
from homeostat.common.recording import FileSource
from homeostat.common.schemas.models import ModelVersion

from .data_sets import data_set

HERE = Path(__file__).parent
EMERGENCE = datetime(2018, 7, 1, tzinfo=UTC)
SLIDING = 3  # of the fraud scenarios: the one that emerges
GONE = 2  # the one that ends

pytestmark = [pytest.mark.real, pytest.mark.timeout(6000)]


@pytest.fixture
def system(tmp_path: Path) -> Iterator[RunningSystem]:
    with running_system(tmp_path / "stack") as running:
        yield running


def emergent_fraud(folder: Path) -> Path:
    """The stream in which one fraud ends and another begins on a known day."""
    table = pq.read_table(data_set("fraud_fdh"))
    is_late = pc.greater_equal(table.column("event_time"), pa.scalar(EMERGENCE))
    scenario = table.column("fraud_scenario")
    dropped = pc.or_(
        pc.and_(is_late, pc.equal(scenario, GONE)),
        pc.and_(pc.invert(is_late), pc.equal(scenario, SLIDING)),
    )
    path = folder / "emergent.parquet"
    pq.write_table(table.filter(pc.invert(dropped)), path)
    return path


def instant_of_share(path: Path, pipeline: Pipeline, share: float) -> int:
    """The event time (epoch ms) before which ``share`` of the rows lie."""
    times = pq.read_table(path, columns=[pipeline.source.time]).column(0)
    millis = np.sort(times.cast(pa.timestamp("ms")).cast(pa.int64()).to_numpy())
    return int(millis[round(share * len(millis))])


async def live(system: RunningSystem, path: Path, pipeline: Pipeline, *, step: timedelta) -> None:
    """Learn from the first fifth by hand, then let the rest run by itself."""
    start_of_life = instant_of_share(path, pipeline, 0.2)
    await publish(pipeline, bootstrap_servers=system.addresses.kafka)
    common: dict[str, Any] = {
        "addresses": system.addresses,
        "speed": 0,
        "step": step,
        "predict": False,
        "tell": print,
    }
    learnt = await replay(path, pipeline, end=start_of_life, **common)
    system.post("trainer", f"/v1/pipelines/{pipeline.name}/runs", {"cause": "first champion"})
    lived = await replay(path, pipeline, start=start_of_life, **common)
    rows, seconds = learnt.events + lived.events, learnt.seconds + lived.seconds
    print(f"{pipeline.name}: {rows:,} events in {seconds:,.0f} s, {rows / seconds:,.0f} events/s")
    assert learnt.refused == lived.refused == 0


def primary_predictions(system: RunningSystem, path: Path, pipeline: Pipeline) -> pa.Table:
    """One row an event: the prediction that counted, with the label that the file tells.

    The labels of the last week come after the last event; the file knows them.
    """
    table = DeltaTable(system.home.offline / pipeline.name / "predictions")
    columns = ["event_id", "event_time", "score", "decision", "version"]
    primary = table.to_pyarrow_dataset().to_table(columns, pc.field("is_primary"))
    truth = FileSource(path, pipeline).truth()
    labels = pa.table({"id": list(truth), "label": list(truth.values())})
    return primary.join(labels, "event_id", "id", join_type="inner").sort_by("event_time")


def pooled_f1(decisions: Any, labels: Any) -> float:
    said, true = np.asarray(decisions, bool), np.asarray(labels) == 1
    return float(2 * (said & true).sum() / (said.sum() + true.sum()))


def static_f1(system: RunningSystem, pipeline: Pipeline, rows: pa.Table) -> float:
    """The first champion, kept as it was, on the same rows."""
    first = asyncio.run(version(system, pipeline.name, 1))
    content = redis.Redis.from_url(system.redis_url).get(artifacts.redis_key(first.artifact.sha256))
    assert isinstance(content, bytes)
    booster = xgboost.Booster()
    booster.load_model(bytearray(content))
    columns = [f"value:{name}" for name in first.features]
    table = DeltaTable(system.home.offline / pipeline.name / "vectors")
    vectors = table.to_pyarrow_dataset().to_table(["id", *columns])
    joined = rows.select(["event_id", "label"]).join(vectors, "event_id", "id", join_type="inner")
    values = np.column_stack([joined.column(name).to_numpy() for name in columns])
    scores = booster.inplace_predict(values.astype(np.float32), missing=np.nan)
    return pooled_f1(scores >= first.threshold, joined.column("label").to_numpy())


async def version(system: RunningSystem, pipeline: str, number: int) -> ModelVersion:
    view = kafka.CompactedView(
        topics.MODEL_VERSIONS,
        lambda value: msgspec.json.decode(value, type=ModelVersion),
        bootstrap_servers=system.addresses.kafka,
        client_id="test",
    )
    await view.start()
    try:
        await view.caught_up()
        return view.values[f"{pipeline}/{number}"]
    finally:
        await view.stop()


def decisions(system: RunningSystem, pipeline: str) -> list[dict[str, Any]]:
    found = system.get("judge", f"/v1/pipelines/{pipeline}/rollout/decisions?limit=1000")
    return sorted(found["decisions"], key=lambda decision: int(decision["at"]))


def tell(system: RunningSystem, pipeline: str) -> None:
    """What the loop did, line by line and counted."""
    runs = system.get("trainer", f"/v1/pipelines/{pipeline}/runs?limit=200")["runs"]
    for run in sorted(runs, key=lambda run: int(run["triggered_at"])):
        kind, message = run["trigger"]["kind"], run["trigger"]["message"]
        print(
            day(run["triggered_at"]), "run", kind, message[:80], run["state"], run["reason"][:120]
        )
    moves = decisions(system, pipeline)
    for move in moves:
        print(day(move["at"]), "rollout", move["action"], move["evidence"].get("reason"))
    done = Counter(run["state"] for run in runs) + Counter(move["action"] for move in moves)
    print(
        f"{pipeline}: {len(runs)} runs;", ", ".join(f"{done[name]} {name}" for name in sorted(done))
    )


def day(millis: int) -> str:
    return f"{datetime.fromtimestamp(int(millis) / 1000, UTC):%m-%d %H:%M}"


def test_an_emergent_fraud_is_healed(system: RunningSystem, tmp_path: Path) -> None:
    path = emergent_fraud(tmp_path)
    pipeline = load(HERE / "fraud_fdh.yaml")

    asyncio.run(live(system, path, pipeline, step=timedelta(hours=12)))

    tell(system, pipeline.name)
    system.post("features", f"/v1/pipelines/{pipeline.name}/offline/commit")
    rows = primary_predictions(system, path, pipeline)
    healed = pooled_f1(rows.column("decision").to_numpy(), rows.column("label").to_numpy())
    static = static_f1(system, pipeline, rows)
    print(f"F1 over {rows.num_rows:,} rows: static {static:.3f}, healed {healed:.3f}")
    assert rows.num_rows > 1_380_000  # of 1,397,635; none until the first champion stands
    assert healed >= static + 0.15


def test_a_stationary_stream_is_left_alone(system: RunningSystem) -> None:
    path = data_set("clicks_eshop08")
    pipeline = load(HERE / "clicks_eshop08.yaml")

    asyncio.run(live(system, path, pipeline, step=timedelta(days=1)))

    tell(system, pipeline.name)
    runs = system.get("trainer", f"/v1/pipelines/{pipeline.name}/runs")["runs"]
    by_drift = [run for run in runs if run["trigger"]["kind"] in ("drift", "performance")]
    assert len(by_drift) <= 1
