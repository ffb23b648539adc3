"""What the service exports of its workers."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from homeostat.features.freshness import Freshness
from homeostat.features.metrics import WorkerCollector
from homeostat.features.reports import PartitionReport, Report
from homeostat.features.supervision import WorkerSupervisor


def reporting(*parts: PartitionReport) -> WorkerSupervisor:
    job = SimpleNamespace(pipeline="fraud", definition="0a1b2c3d", group="features-fraud-0a1b2c3d")
    worker = SimpleNamespace(job=job, report=Report([*parts], 0.0), restarts=0, is_running=True)
    return cast(WorkerSupervisor, cast(Any, worker))


def exported(part: PartitionReport, *, now: float) -> dict[str, dict[str, float]]:
    """Values by metric and partition."""
    workers = [reporting(part)]
    return {
        family.name: {sample.labels.get("partition", ""): sample.value for sample in family.samples}
        for family in WorkerCollector(lambda: workers, now=lambda: now).collect()
    }


def test_lag_is_told_in_records_and_in_seconds() -> None:
    part = PartitionReport("fraud-events", 3, 70, 60, {}, end=100, current_at=1_000_000)

    told = exported(part, now=1_012.5)

    assert told["kafka_consumer_lag_records"] == {"3": 30}
    assert told["kafka_consumer_lag_seconds"] == {"3": 12.5}


def test_freshness_is_a_histogram_from_event_time_until_a_read_finds_the_event() -> None:
    freshness = Freshness()
    freshness.folded(np.array([1_000, 1_990, 700_000]))
    freshness.put_back(freshness.take())  # the store was away
    freshness.readable(freshness.take(), 2_000)
    part = PartitionReport(
        "fraud-by-card",
        3,
        0,
        0,
        {},
        end=0,
        current_at=0,
        freshness=freshness.counts,
        freshness_sum=freshness.sum_seconds,
    )
    registry = CollectorRegistry()
    registry.register(WorkerCollector(lambda: [reporting(part, part)]))

    def told(name: str, **labels: str) -> float | None:
        of = {"pipeline": "fraud", "definition": "0a1b2c3d", "topic": "fraud-by-card"}
        return registry.get_sample_value(f"features_freshness_seconds_{name}", {**of, **labels})

    assert told("bucket", le="0.01") == 4  # and what seems to come from the future
    assert told("bucket", le="0.5") == 4
    assert told("bucket", le="1.0") == 6
    assert told("count") == told("bucket", le="+Inf") == 6
    assert told("sum") == pytest.approx(2 * 1.01)


def test_a_partition_of_which_nothing_is_known_has_no_lag_in_seconds() -> None:
    part = PartitionReport("fraud-events", 3, 0, 0, {}, end=0, current_at=0)

    assert exported(part, now=1_012.5)["kafka_consumer_lag_seconds"] == {}
