"""What the drift service, and the skew audit, tell the trainer, the judge and people."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class AlertKind(StrEnum):
    DATA_DRIFT = "data_drift"
    PREDICTION_DRIFT = "prediction_drift"
    PERFORMANCE = "performance"
    QUALITY = "quality"
    SKEW = "skew"  # what was served is not what its log says; holds promotions


class Cause(StrEnum):
    """Why, as far as can be told. A data fault pages people and never retrains."""

    DATA_FAULT = "data_fault"
    UNIT_CHANGE = "unit_change"
    COVARIATE = "covariate"
    PRIOR = "prior"
    CONCEPT = "concept"

    @property
    def is_fault(self) -> bool:
        return self in (Cause.DATA_FAULT, Cause.UNIT_CHANGE)


class Finding(msgspec.Struct, frozen=True):
    """One figure beyond its limit. ``subject`` is a feature, ``score``, or a metric's name."""

    subject: str
    statistic: str
    value: float
    limit: float
    samples: int


class Alert(msgspec.Struct, frozen=True):
    """One incident.

    ``id`` is derived from its content, so a repeated emission is the same alert.
    """

    id: str
    pipeline: str
    kind: AlertKind
    cause: Cause
    at: int  # epoch ms, pipeline time
    window_start: int
    window_end: int
    version: int  # the champion it was found on
    findings: tuple[Finding, ...]
    retrain: bool
    message: str
