"""A use case is one file: whoever adds another one writes no code and disturbs nobody."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from homeostat.cli.replay.drain import Drain
from homeostat.cli.testing import RunningSystem
from homeostat.common.pipeline import Pipeline, load
from tests.e2e.asking import WAIT_SECONDS, asked_all_along, served, until

HERE = Path(__file__).parent
AD_CLICKS = HERE / "ad_clicks.yaml"
IMPRESSIONS = 600

PAYMENT = {"entities": {"customer_id": "c1", "terminal_id": "t1", "device_id": "d1"}}
ON_TOP = {
    "impression_id": "asked",
    "visitor_id": "v1",
    "campaign_id": "spring",
    "position": 1,
    "is_mobile": False,
}
AT_THE_BOTTOM = ON_TOP | {"position": 9}

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_a_second_pipeline_is_added_by_a_pipeline_file_alone_while_the_first_serves(
    system: RunningSystem, crowned: Callable[[Pipeline], Pipeline]
) -> None:
    first = crowned(load(HERE / "payments.yaml").model_copy(update={"name": "first"}))
    asyncio.run(served(system, first.name, PAYMENT))

    applied = homeostat(system, "apply", str(AD_CLICKS))
    statuses, likely, unlikely = asyncio.run(live(system, first.name))

    assert applied.startswith("ad-clicks: new\n")
    assert set(statuses) == {200}
    assert likely["model"] == {"name": "ad-clicks", "version": 1, "variant": "champion"}
    assert likely["features"]["campaign_shown_30m"]["status"] == "present"
    assert likely["score"] > unlikely["score"]


def homeostat(system: RunningSystem, *words: str) -> str:
    return subprocess.run(
        [Path(sys.executable).parent / "homeostat", *words],
        env=os.environ | {"HOMEOSTAT_HOME": str(system.home.root)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


async def live(
    system: RunningSystem, first: str
) -> tuple[list[int], dict[str, Any], dict[str, Any]]:
    """The second pipeline's first days, and how the first one answered meanwhile."""
    async with asked_all_along(system, first, PAYMENT) as statuses:
        await send_history(system)
        await train(system)
        likely = await served(system, "ad-clicks", ON_TOP | {"shown_at": time.time()})
        unlikely = await served(system, "ad-clicks", AT_THE_BOTTOM | {"shown_at": time.time()})
    return statuses, likely, unlikely


async def send_history(system: RunningSystem) -> None:
    """Half an hour of impressions, of which the ones at the top are clicked."""
    generator = np.random.default_rng(11)
    now = time.time()
    positions = generator.integers(1, 10, IMPRESSIONS)
    events = [
        {
            "impression_id": f"i{number}",
            "visitor_id": f"v{generator.integers(40)}",
            "campaign_id": ("spring", "autumn")[generator.integers(2)],
            "position": int(position),
            "is_mobile": bool(generator.integers(2)),
            "shown_at": now - 1800 + 2.5 * number,
        }
        for number, position in enumerate(positions)
    ]
    clicks = [
        {"id": f"i{number}", "label": int(generator.random() < (0.8 if position < 4 else 0.1))}
        for number, position in enumerate(positions)
    ]
    for kind, rows in (("events", events), ("labels", clicks)):
        answer = await until(
            system.url("ingest", f"/v1/pipelines/ad-clicks/{kind}"), rows, status=202
        )
        assert answer["refused"] == 0, answer
    services = {"features": system.url("features")}
    async with Drain(
        "ad-clicks", bootstrap_servers=system.addresses.kafka, services=services
    ) as drain:
        await drain.wait()


async def train(system: RunningSystem) -> None:
    runs = system.url("trainer", "/v1/pipelines/ad-clicks/runs")
    started = await until(runs, {"cause": "the first model"}, status=202)
    async with httpx.AsyncClient() as http, asyncio.timeout(WAIT_SECONDS):
        while True:
            run = (await http.get(f"{runs}/{started['id']}")).json()
            if run["state"] == "done":
                return
            assert run["state"] not in ("refused", "failed"), run
            await asyncio.sleep(0.1)
