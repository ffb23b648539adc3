from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReadRequest(_message.Message):
    __slots__ = ("pipeline", "entities", "features", "at")
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    ENTITIES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    pipeline: str
    entities: _containers.RepeatedCompositeFieldContainer[EntityKeys]
    features: _containers.RepeatedScalarFieldContainer[str]
    at: int
    def __init__(self, pipeline: _Optional[str] = ..., entities: _Optional[_Iterable[_Union[EntityKeys, _Mapping]]] = ..., features: _Optional[_Iterable[str]] = ..., at: _Optional[int] = ...) -> None: ...

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

class ReadResponse(_message.Message):
    __slots__ = ("definition_hash", "at", "features", "rows")
    DEFINITION_HASH_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    definition_hash: str
    at: int
    features: _containers.RepeatedScalarFieldContainer[str]
    rows: _containers.RepeatedCompositeFieldContainer[ReadRow]
    def __init__(self, definition_hash: _Optional[str] = ..., at: _Optional[int] = ..., features: _Optional[_Iterable[str]] = ..., rows: _Optional[_Iterable[_Union[ReadRow, _Mapping]]] = ...) -> None: ...

class ReadRow(_message.Message):
    __slots__ = ("values", "statuses", "event_times")
    class EventTimesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    VALUES_FIELD_NUMBER: _ClassVar[int]
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIMES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    statuses: bytes
    event_times: _containers.ScalarMap[str, int]
    def __init__(self, values: _Optional[_Iterable[float]] = ..., statuses: _Optional[bytes] = ..., event_times: _Optional[_Mapping[str, int]] = ...) -> None: ...
