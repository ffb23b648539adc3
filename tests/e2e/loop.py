"""A week in which a new fraud breaks a model; the loop has to close over it, wherever it runs."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from homeostat.cli.publishing import publish
from homeostat.cli.replay.run import replay
from homeostat.cli.testing import ReachableSystem
from homeostat.common.pipeline import Pipeline, load
from pipelines.fraud.simulator import Drift, Scenario, simulate

HERE = Path(__file__).parent
SCENARIO = Scenario(
    seed=8,
    days=7,
    customers=1000,
    terminals=150,
    events_per_day=4000,
    drifts=(Drift.parse("new_fraud_pattern@4d*4"),),
    label_delay=timedelta(hours=6),
)
LIFE = timedelta(days=3)
DRIFT = timedelta(days=4)


def instant(after: timedelta) -> int:
    return round((SCENARIO.start + after).timestamp() * 1000)


async def live(system: ReachableSystem, path: Path, pipeline: Pipeline) -> None:
    common: dict[str, Any] = {
        "addresses": system.addresses,
        "speed": 0,
        "step": timedelta(hours=3),
        "predict": False,
    }
    await publish(pipeline, bootstrap_servers=system.addresses.kafka)
    learnt = await replay(path, pipeline, end=instant(LIFE), **common)
    system.post("trainer", f"/v1/pipelines/{pipeline.name}/runs", {"cause": "first champion"})
    lived = await replay(path, pipeline, start=instant(LIFE), **common)
    assert learnt.refused == lived.refused == 0


def assert_closes(system: ReachableSystem, folder: Path) -> None:
    """Replay the week, and find the new fraud alarmed, learnt, rolled out and promoted."""
    path = folder / "payments.parquet"
    table = simulate(SCENARIO)
    pq.write_table(table, path)
    pipeline = load(HERE / "payments.yaml")

    asyncio.run(live(system, path, pipeline))

    base = f"/v1/pipelines/{pipeline.name}"
    alerts = system.get("drift", f"{base}/alerts?limit=200")["alerts"]
    runs = system.get("trainer", f"{base}/runs")["runs"]
    decisions = system.get("judge", f"{base}/rollout/decisions?limit=1000")["decisions"]
    after = [alert for alert in alerts if alert["at"] > instant(DRIFT)]
    assert any(alert["retrain"] for alert in after), (alerts, runs, decisions)
    by_alarm = {
        run["version"] for run in runs if run["trigger"]["kind"] in ("drift", "performance")
    }
    champion = system.get("judge", f"{base}/rollout")["champion"]
    assert champion in by_alarm, (runs, decisions)
    audit = system.get("features", f"{base}/audit")
    assert audit["reports"] == []
    checked = [found["count"] for found in audit["checked"] if found["result"] == "equal"]
    assert sum(checked) > 100, audit
    committed = system.post("features", f"{base}/offline/commit")
    assert committed["rows"]["vectors"] == table.num_rows
