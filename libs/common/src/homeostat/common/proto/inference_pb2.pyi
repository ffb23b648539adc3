from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ScoreBatchRequest(_message.Message):
    __slots__ = ("pipeline", "version", "rollout", "variant", "rows")
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    pipeline: str
    version: int
    rollout: str
    variant: str
    rows: _containers.RepeatedCompositeFieldContainer[ScoreRow]
    def __init__(self, pipeline: _Optional[str] = ..., version: _Optional[int] = ..., rollout: _Optional[str] = ..., variant: _Optional[str] = ..., rows: _Optional[_Iterable[_Union[ScoreRow, _Mapping]]] = ...) -> None: ...

class ScoreRow(_message.Message):
    __slots__ = ("prediction_id", "unit", "event", "entities", "vector", "propensity", "timeout_ms", "traceparent", "available_at")
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    ENTITIES_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_AT_FIELD_NUMBER: _ClassVar[int]
    prediction_id: str
    unit: str
    event: bytes
    entities: EntityKeys
    vector: Vector
    propensity: float
    timeout_ms: int
    traceparent: str
    available_at: int
    def __init__(self, prediction_id: _Optional[str] = ..., unit: _Optional[str] = ..., event: _Optional[bytes] = ..., entities: _Optional[_Union[EntityKeys, _Mapping]] = ..., vector: _Optional[_Union[Vector, _Mapping]] = ..., propensity: _Optional[float] = ..., timeout_ms: _Optional[int] = ..., traceparent: _Optional[str] = ..., available_at: _Optional[int] = ...) -> None: ...

class EntityKeys(_message.Message):
    __slots__ = ("keys",)
    class KeysEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.ScalarMap[str, str]
    def __init__(self, keys: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Vector(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class ScoreBatchResponse(_message.Message):
    __slots__ = ("version", "features", "definition_hash", "threshold", "rows")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    DEFINITION_HASH_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    version: int
    features: _containers.RepeatedScalarFieldContainer[str]
    definition_hash: str
    threshold: float
    rows: _containers.RepeatedCompositeFieldContainer[ScoredRow]
    def __init__(self, version: _Optional[int] = ..., features: _Optional[_Iterable[str]] = ..., definition_hash: _Optional[str] = ..., threshold: _Optional[float] = ..., rows: _Optional[_Iterable[_Union[ScoredRow, _Mapping]]] = ...) -> None: ...

class ScoredRow(_message.Message):
    __slots__ = ("prediction_id", "status", "score", "decision", "values", "statuses", "age_ms", "is_degraded", "problem")
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    IS_DEGRADED_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    prediction_id: str
    status: int
    score: float
    decision: bool
    values: _containers.RepeatedScalarFieldContainer[float]
    statuses: bytes
    age_ms: int
    is_degraded: bool
    problem: bytes
    def __init__(self, prediction_id: _Optional[str] = ..., status: _Optional[int] = ..., score: _Optional[float] = ..., decision: _Optional[bool] = ..., values: _Optional[_Iterable[float]] = ..., statuses: _Optional[bytes] = ..., age_ms: _Optional[int] = ..., is_degraded: _Optional[bool] = ..., problem: _Optional[bytes] = ...) -> None: ...
