"""The declarative spec of a use case: what a ``pipeline.yaml`` may say.

Every key is declared here; an unknown one is refused. Cross-references (does the aggregate's
field exist?) are checked in ``homeostat.common.pipeline.references``, so that all problems of a
file are told at once.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    field_validator,
    model_validator,
)

from homeostat.common.durations import format_duration, parse_duration
from homeostat.common.policy import Policy

NAME_PATTERN = r"^[a-z][a-z0-9-]{0,62}$"
FIELD_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]{0,62}$"


def _duration(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str):
        raise ValueError("a duration needs its unit: 30m, 12h, 7d")  # noqa: TRY004 - pydantic's
    return parse_duration(value)


def _share(value: Any) -> float:
    if isinstance(value, str) and value.endswith("%"):
        value = float(value[:-1]) / 100
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError("a share lies between 0 and 1; write 5% or 0.05")
    return float(value)


Duration = Annotated[
    timedelta,
    BeforeValidator(_duration, json_schema_input_type=str),
    PlainSerializer(format_duration, return_type=str),
]
Share = Annotated[float, BeforeValidator(_share, json_schema_input_type=str | float)]
AGGREGATES = """\
count(), count(field); sum, mean, min, max, std, first, last (field); rate(): events per second; \
distinct(field): HyperLogLog, standard error 3.25 %; quantile(field, 0.95): within 0.8 % of the \
value; last_k(field, 3): the third newest value; seconds_since_last(); distance(latitude, \
longitude) in km, speed(latitude, longitude) in km/h, between the two newest events"""
WINDOWS = """\
sliding 30m: the last 30 minutes, the tail rounded out to 1/64; tumbling 5m: the last closed ones; \
hopping 1h every 5m: likewise, overlapping (`open` after either: the one that closes next); \
session 30m: the newest run of events without a longer gap, its last 64 gaps; decay 1h: weights \
that halve every hour, within 0.03 % (count, sum, mean); lifetime: all events"""
FieldName = Annotated[str, Field(pattern=FIELD_PATTERN)]


class Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FieldType(StrEnum):
    STRING = "string"
    FLOAT = "float"
    INTEGER = "integer"
    DECIMAL = "decimal"
    BOOLEAN = "boolean"
    CATEGORY = "category"

    @property
    def is_numeric(self) -> bool:
        return self in (FieldType.FLOAT, FieldType.INTEGER, FieldType.DECIMAL, FieldType.BOOLEAN)


class Pii(StrEnum):
    DROP = "drop"
    HASH = "hash"


class FieldSpec(Spec):
    """One field of an event.

    ``scale`` is the smallest step of a decimal: sums are exact multiples of it.
    """

    type: FieldType
    scale: Annotated[float, Field(gt=0)] | None = None
    minimum: float | None = None
    maximum: float | None = None
    values: tuple[str, ...] | None = None
    pii: Pii | None = None
    optional: bool = False

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> FieldSpec:
        if self.type is FieldType.CATEGORY and not self.values:
            raise ValueError("a category lists its values, for example values: [web, pos, app]")
        if self.type is not FieldType.CATEGORY and self.values is not None:
            raise ValueError("only a category has values")
        if self.type is FieldType.DECIMAL and self.scale is None:
            raise ValueError("a decimal needs its scale, for example scale: 0.01")
        if not self.type.is_numeric and (self.minimum, self.maximum, self.scale) != (None,) * 3:
            raise ValueError("minimum, maximum and scale belong to numbers")
        return self


class LabelSpec(Spec):
    """Where the outcome is, and when it may be trusted.

    ``delay`` is how late labels usually arrive; an event older than ``maturity`` counts as
    labelled, with ``absent`` standing for one that never came (``drop``: such events are left out).
    """

    field: FieldName
    time: FieldName | None = None
    delay: Duration = timedelta(0)
    maturity: Duration
    absent: Literal[0, "drop"] = "drop"


class SourceSpec(Spec):
    id: FieldName
    time: FieldName
    key: FieldName
    order: tuple[FieldName, ...] = ()
    label: LabelSpec


class AggregateSpec(Spec):
    """A windowed aggregate of an entity's events, such as ``mean(amount)`` over ``sliding 30m``.

    What each window and aggregate means, and its error, is in the README of this package.
    ``missing`` stands for a value that is null or missing; a ``stale`` one is served, or taken for
    missing; with one of the statuses in ``refuse`` nothing is scored.
    """

    entity: FieldName
    aggregate: Annotated[str, Field(description=AGGREGATES)]
    window: Annotated[str, Field(description=WINDOWS)] = "lifetime"
    delay: Duration = timedelta(0)
    missing: float | None = None
    stale: Literal["serve", "missing"] = "serve"
    refuse: tuple[Literal["null", "missing", "stale", "unavailable"], ...] = ()
    description: str | None = None


class ExpressionSpec(Spec):
    """A value computed from fields and other features; ``default`` stands for null."""

    expression: str
    default: float | None = None
    description: str | None = None


def _feature_kind(value: Any) -> str:
    """Tag a feature; pydantic puts tags into error locations, so they are no possible keys."""
    if isinstance(value, ExpressionSpec) or (isinstance(value, dict) and "expression" in value):
        return "<expression>"
    return "<aggregate>"


FeatureSpec = Annotated[
    Annotated[AggregateSpec, Tag("<aggregate>")] | Annotated[ExpressionSpec, Tag("<expression>")],
    Discriminator(_feature_kind),
]


class Cost(Spec):
    false_positive: Annotated[float, Field(ge=0)]
    false_negative: Annotated[float, Field(ge=0)]


class ThresholdSpec(Spec):
    """How the decision threshold is chosen on out-of-fold scores: least cost, or best metric."""

    cost: Cost | None = None
    metric: Literal["f1"] | None = None

    @model_validator(mode="after")
    def _one(self) -> ThresholdSpec:
        if (self.cost is None) == (self.metric is None):
            raise ValueError("give either cost: {false_positive, false_negative} or metric: f1")
        return self


class ModelSpec(Spec):
    kind: Literal["xgboost"] = "xgboost"
    objective: Literal["binary"] = "binary"
    metric: Literal["average_precision", "roc_auc", "log_loss"] = "average_precision"
    threshold: ThresholdSpec = ThresholdSpec(metric="f1")


class ScoringPath(StrEnum):
    """Which path gives *the* prediction; the other is marked and left out of metrics."""

    REQUEST = "request"
    STREAM = "stream"


class DriftLimits(Spec):
    """Effect sizes above which a feature counts as drifted."""

    psi: Annotated[float, Field(gt=0)] = 0.25
    js: Annotated[float, Field(gt=0, le=1)] = 0.15
    ks: Annotated[float, Field(gt=0, le=1)] = 0.15


class PerformanceDrift(Spec):
    """Alarm when the metric on mature labels falls by ``drop`` of the figure at promotion."""

    metric: Literal["f1", "average_precision", "roc_auc"] = "f1"
    drop: Share = 0.05
    window: Duration = timedelta(days=1)
    min_positives: Annotated[int, Field(ge=1)] = 50


class DriftSpec(Spec):
    reference: Literal["training"] = "training"
    window: Duration = timedelta(days=1)
    min_samples: Annotated[int, Field(ge=50)] = 500
    consecutive: Annotated[int, Field(ge=1)] = 2
    limits: DriftLimits = DriftLimits()
    missing: Share = 0.05
    performance: PerformanceDrift = PerformanceDrift()


class TriggerSpec(Spec):
    """What starts a training run; a run started by hand always may."""

    drift: bool = True
    performance: bool = True
    labels: Annotated[int, Field(ge=1)] | None = None
    schedule: Duration | None = None


class TrainingBudget(Spec):
    trials: Annotated[int, Field(ge=1, le=1000)] = 20
    seconds: Annotated[int, Field(ge=1, le=86_400)] = 300


def _history(value: Any) -> timedelta | None:
    return None if value in ("all", None) else _duration(value)


HistoryLength = Annotated[
    timedelta | None,
    BeforeValidator(_history, json_schema_input_type=str),
    PlainSerializer(lambda value: "all" if value is None else format_duration(value)),
]


class TrainingSpec(Spec):
    """When and how a challenger is trained.

    ``history`` lists the lengths that the search may choose from. ``cost`` is the pipeline time
    that a run is charged under replay, where the clock stands still while it computes.
    """

    triggers: TriggerSpec = TriggerSpec()
    cooldown: Duration = timedelta(minutes=30)
    budget: TrainingBudget = TrainingBudget()
    history: Annotated[tuple[HistoryLength, ...], Field(min_length=1)] = (None,)
    rebalance: Literal["auto", "none"] = "auto"
    holdout: Share = 0.2
    min_rows: Annotated[int, Field(ge=100)] = 1000
    min_positives: Annotated[int, Field(ge=10)] = 50
    cost: Duration = timedelta(minutes=10)
    seed: int = 7


class PhaseSpec(Spec):
    """How long a phase lasts at least, and how many challenger scores it needs before a verdict."""

    hold: Duration
    min_samples: Annotated[int, Field(ge=1)] = 200


class ExperimentSpec(PhaseSpec):
    share: Share = 0.05


class RateGuardrail(Spec):
    maximum: Share
    min_samples: Annotated[int, Field(ge=1)] = 100


class LatencyGuardrail(Spec):
    maximum: Duration
    min_samples: Annotated[int, Field(ge=1)] = 100


class Guardrails(Spec):
    error_rate: RateGuardrail = RateGuardrail(maximum=0.01)
    p99_latency: LatencyGuardrail = LatencyGuardrail(maximum=timedelta(milliseconds=200))


def _percent(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 100:
        return value / 100
    raise ValueError("a step is a percentage above 0, at most 100")


class RolloutSpec(Spec):
    """The way of a challenger: shadow, experiment, canary steps (percent), champion."""

    shadow: PhaseSpec | None = None
    experiment: ExperimentSpec | None = None
    steps: Annotated[
        tuple[
            Annotated[float, BeforeValidator(_percent), PlainSerializer(lambda share: share * 100)],
            ...,
        ],
        BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
    ] = (0.05, 0.25, 0.5, 1.0)
    hold: Duration = timedelta(minutes=10)
    min_samples: Annotated[int, Field(ge=1)] = 200
    holdback: Share = 0.05
    no_data_deadline: Duration = timedelta(hours=1)
    guardrails: Guardrails = Guardrails()

    @field_validator("steps")
    @classmethod
    def _steps_grow(cls, steps: tuple[float, ...]) -> tuple[float, ...]:
        if not steps or list(steps) != sorted(set(steps)) or steps[-1] != 1.0:
            raise ValueError("steps grow and end at 100, for example [5, 25, 50, 100]")
        return steps


class Pipeline(Spec):
    """One use case, whole.

    ``policy`` is the governance file, inlined when the pipeline file is loaded.
    """

    api_version: Annotated[Literal["homeostat/v1"], Field(alias="apiVersion")] = "homeostat/v1"
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    owner: str
    description: str | None = None
    source: SourceSpec
    unit: FieldName
    freshness: Duration = timedelta(seconds=30)
    lateness: Duration = timedelta(minutes=5)
    future: Duration = timedelta(minutes=5)
    fields: Annotated[dict[FieldName, FieldSpec], Field(min_length=1)]
    features: Annotated[dict[FieldName, FeatureSpec], Field(min_length=1)]
    model: ModelSpec = ModelSpec()
    scoring: ScoringPath = ScoringPath.REQUEST
    drift: DriftSpec = DriftSpec()
    training: TrainingSpec = TrainingSpec()
    rollout: RolloutSpec = RolloutSpec()
    governance: str | None = None
    policy: Policy = Policy()

    @property
    def published_fields(self) -> dict[str, FieldSpec]:
        """The fields of an event that has passed the edge, where personal ones are dropped."""
        return {k: v for k, v in self.fields.items() if v.pii is not Pii.DROP}

    @property
    def aggregates(self) -> dict[str, AggregateSpec]:
        return {k: v for k, v in self.features.items() if isinstance(v, AggregateSpec)}

    @property
    def expressions(self) -> dict[str, ExpressionSpec]:
        return {k: v for k, v in self.features.items() if isinstance(v, ExpressionSpec)}

    @property
    def entities(self) -> tuple[str, ...]:
        """The source's key, then what else has aggregates, in the order an event passes them.

        The key is first also without aggregates of its own: its log is the same for every
        definition of the features, and there repeated events are dropped.
        """
        named = [spec.entity for spec in self.aggregates.values()]
        return tuple(dict.fromkeys([self.source.key, *named]))

    @property
    def key_fields(self) -> tuple[str, ...]:
        """The fields that may be an entity's key, in this definition of the features or a later."""
        return tuple(
            name
            for name, spec in self.published_fields.items()
            if spec.type is FieldType.STRING and name != self.source.id
        )
