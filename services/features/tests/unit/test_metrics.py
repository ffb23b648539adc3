"""What the service exports of its workers."""

from types import SimpleNamespace
from typing import Any, cast

from homeostat.features.metrics import WorkerCollector
from homeostat.features.reports import PartitionReport, Report
from homeostat.features.supervision import WorkerSupervisor


def exported(part: PartitionReport, *, now: float) -> dict[str, dict[str, float]]:
    """Values by metric and partition."""
    worker = SimpleNamespace(report=Report([part], 0.0), restarts=0, is_running=True)
    workers = {"fraud": cast(WorkerSupervisor, cast(Any, worker))}
    return {
        family.name: {sample.labels.get("partition", ""): sample.value for sample in family.samples}
        for family in WorkerCollector(lambda: workers, now=lambda: now).collect()
    }


def test_lag_is_told_in_records_and_in_seconds() -> None:
    part = PartitionReport("fraud-events", 3, 70, 60, {}, end=100, current_at=1_000_000)

    told = exported(part, now=1_012.5)

    assert told["kafka_consumer_lag_records"] == {"3": 30}
    assert told["kafka_consumer_lag_seconds"] == {"3": 12.5}


def test_a_partition_of_which_nothing_is_known_has_no_lag_in_seconds() -> None:
    part = PartitionReport("fraud-events", 3, 0, 0, {}, end=0, current_at=0)

    assert exported(part, now=1_012.5)["kafka_consumer_lag_seconds"] == {}
