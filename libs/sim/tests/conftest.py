"""A stream of payments into which a new pattern of fraud breaks, and a pipeline that reads it."""

import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from homeostat.common.clock import to_millis
from homeostat.common.pipeline import Pipeline, load

# The simulator is a script, not a package: it is imported by its path below the repository.
sys.path.insert(0, str(Path(__file__).parents[3]))

from pipelines.fraud.simulator import Drift, DriftKind, Scenario, simulate

DRIFT_AT = timedelta(days=2.5)
SCENARIO = Scenario(
    seed=11,
    days=5,
    customers=300,
    terminals=60,
    events_per_day=3_000,
    drifts=(Drift(DriftKind.NEW_FRAUD_PATTERN, DRIFT_AT),),
    label_delay=timedelta(hours=2),
)


@pytest.fixture(scope="session")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("stream") / "payments.parquet"
    pq.write_table(simulate(SCENARIO), file)
    return file


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    return load(Path(__file__).parent / "pipeline.yaml")


@pytest.fixture(scope="session")
def drift_at() -> str:
    """When the fraud changes, as a report says it."""
    return (SCENARIO.start + DRIFT_AT).isoformat()


@pytest.fixture(scope="session")
def instant() -> Callable[..., int]:
    """Epoch milliseconds so many days after the stream's start."""
    return lambda *, days: to_millis(SCENARIO.start + timedelta(days=days))
