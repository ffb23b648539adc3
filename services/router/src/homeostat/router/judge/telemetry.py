"""Kafka records as the judge's inputs."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from homeostat.common.errors import InvalidEvent
from homeostat.common.schemas.alerts import Alert
from homeostat.common.schemas.exposures import Exposure
from homeostat.common.schemas.ledger import LedgerBatch
from homeostat.common.schemas.rollouts import Trip
from homeostat.router import metrics
from homeostat.router.analysis import Row

logger = logging.getLogger(__name__)

_decode_row = msgspec.json.Decoder(Row).decode
_decode_exposure = msgspec.json.Decoder(Exposure).decode
_decode_alert = msgspec.json.Decoder(Alert).decode
_decode_trip = msgspec.json.Decoder(Trip).decode
_COLUMNS = ("rollout", "variant", "path", "at", "score", "latency_us", "error")


@dataclass
class Gathered:
    """What one cycle has read about a pipeline."""

    rows: list[Row] = field(default_factory=list)
    exposures: list[Exposure] = field(default_factory=list)
    trips: list[Trip] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)


def ledger_rows(topic: str, values: Iterable[bytes]) -> list[Row]:
    """The rows of ledger records, JSON or Arrow."""
    rows: list[Row] = []
    for value in values:
        try:
            if value[:1] == b"{":
                rows.append(_decode_row(value))
                continue
            batch = LedgerBatch.decode(value).batch
        except (msgspec.DecodeError, InvalidEvent) as error:
            _skip(topic, error)
            continue
        columns = [batch.column(name).to_pylist() for name in _COLUMNS]
        rows.extend(Row(*row) for row in zip(*columns, strict=True))
    return rows


def exposures(topic: str, values: Iterable[bytes]) -> list[Exposure]:
    return _decoded(topic, values, _decode_exposure)


def alerts(topic: str, values: Iterable[bytes]) -> list[Alert]:
    return _decoded(topic, values, _decode_alert)


def trips(topic: str, values: Iterable[bytes]) -> list[Trip]:
    return _decoded(topic, values, _decode_trip)


def _decoded(topic: str, values: Iterable[bytes], decode: Any) -> list[Any]:
    found = []
    for value in values:
        try:
            found.append(decode(value))
        except msgspec.DecodeError as error:
            _skip(topic, error)
    return found


def _skip(topic: str, error: Exception) -> None:
    metrics.UNREADABLE.labels(topic).inc()
    logger.error("unreadable record skipped", extra={"topic": topic, "error": str(error)})
