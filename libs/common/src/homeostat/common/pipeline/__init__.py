"""The pipeline file: the single source of a use case."""

from homeostat.common.pipeline.file import load, load_policy
from homeostat.common.pipeline.snapshot import Snapshot
from homeostat.common.pipeline.spec import (
    AggregateSpec,
    ExpressionSpec,
    FieldSpec,
    FieldType,
    Pii,
    Pipeline,
    ScoringPath,
)

__all__ = [
    "AggregateSpec",
    "ExpressionSpec",
    "FieldSpec",
    "FieldType",
    "Pii",
    "Pipeline",
    "ScoringPath",
    "Snapshot",
    "load",
    "load_policy",
]
