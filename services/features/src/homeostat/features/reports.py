"""What a worker tells its supervisor about itself, one JSON line at a time."""

from __future__ import annotations

import msgspec


class PartitionReport(msgspec.Struct, frozen=True):
    topic: str
    partition: int
    position: int  # taken in
    committed: int  # in the last transaction
    counters: dict[str, int]  # as committed
    end: int  # behind the last record of the broker
    current_at: int  # epoch ms: all that stood there then is taken in; 0 before anything is known
    freshness: list[int] = []  # events by bucket (see freshness.py)
    freshness_sum: float = 0.0  # seconds


class Report(msgspec.Struct, frozen=True):
    partitions: list[PartitionReport]
    restore_seconds: float
