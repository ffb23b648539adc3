"""Shares of late flights, by pipeline file alone: what labels had told by then, and no more."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from homeostat.cli.publishing import publish
from homeostat.cli.replay.run import replay
from homeostat.cli.testing import RunningSystem
from homeostat.common.pipeline import load

from .data_sets import data_set

HERE = Path(__file__).parent
STEP = timedelta(hours=6)
HOUR_MS = 3_600_000
NEVER = 1e15  # epoch ms
SHARES = {  # by feature: its entity and window, in hours
    "aircraft_late_1d": ("tail_number", 24),
    "carrier_late_6h": ("carrier", 6),
    "airport_late_3h": ("origin", 3),
}
PANES = 64  # of a sliding window, whose tail is rounded out to a whole one

I64 = np.ndarray[tuple[int], np.dtype[np.int64]]
F64 = np.ndarray[tuple[int], np.dtype[np.float64]]


@pytest.fixture
def flights() -> Path:
    return data_set("flights_hou11")


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(datetime(2011, 1, 7, tzinfo=UTC), id="six-days"),
        pytest.param(datetime(2012, 1, 2, tzinfo=UTC), id="a-year", marks=pytest.mark.real),
    ],
)
@pytest.mark.timeout(3_000)
def test_shares_of_late_flights_come_from_those_that_had_arrived(
    flights: Path, system: RunningSystem, end: datetime
) -> None:
    pipeline = load(HERE / "flights_hou11.yaml")

    asyncio.run(publish(pipeline, bootstrap_servers=system.addresses.kafka))
    report = asyncio.run(
        replay(
            flights,
            pipeline,
            addresses=system.addresses,
            speed=0,
            step=STEP,
            end=round(end.timestamp() * 1000),
            predict=False,
        )
    )
    system.post("features", f"/v1/pipelines/{pipeline.name}/offline/commit")

    rows = DeltaTable(system.home.offline / pipeline.name / "vectors").to_pyarrow_table()
    assert rows.num_rows == report.events > 2_000
    assert report.refused == 0
    computed = rows.take(np.argsort(rows.column("id").to_numpy().astype(np.int64)))
    for feature, expected in expected_shares(flights, rows.num_rows).items():
        found = computed.column(f"value:{feature}").to_numpy()
        np.testing.assert_array_equal(found, expected, err_msg=feature)
        assert np.isfinite(expected).mean() > 0.2


def expected_shares(path: Path, count: int) -> dict[str, F64]:
    """Each share of the first flights, counted one flight after the other."""
    flights = pq.read_table(path).slice(0, count)
    label_times = flights.column("label_time").cast("int64").to_numpy(zero_copy_only=False)
    arrives = np.nan_to_num(label_times, nan=NEVER)
    late = np.nan_to_num(flights.column("late15").to_numpy(zero_copy_only=False))
    departs = flights.column("event_time").cast("int64").to_numpy()
    return {
        feature: shares(flights.column(entity).to_numpy(), departs, arrives, late, hours=hours)
        for feature, (entity, hours) in SHARES.items()
    }


def shares(keys: np.ndarray, departs: I64, arrives: F64, late: F64, *, hours: int) -> F64:
    """The mean label of the window before each departure, of flights that had landed.

    A label becomes known with the end of the step that it falls into.
    """
    size = hours * HOUR_MS
    pane = -(-size // PANES)
    step = round(STEP.total_seconds() * 1000)
    result = np.full(len(departs), np.nan)
    for key in np.unique(keys):
        mine = np.flatnonzero(keys == key)
        times = departs[mine]
        lows = np.searchsorted(times, (times - size + 1) // pane * pane)
        highs = np.searchsorted(times, times, side="right")
        for row, low, high in zip(mine, lows, highs, strict=True):
            window = mine[low:high]
            known = window[arrives[window] // step < departs[row] // step]
            if len(known):
                result[row] = late[known].sum() / len(known)
    return result
