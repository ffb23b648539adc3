"""What a caller sends: an event, entity keys or a ready vector."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from homeostat.common.errors import (
    UNREADABLE,
    Forbidden,
    InvalidInput,
    TransientError,
    Unparsable,
    unknown_names,
    why_unreadable,
)
from homeostat.common.events import (
    REPLAY_STAMP,
    EventContract,
    check_entity_keys,
    text_violations,
)
from homeostat.common.pipeline.spec import Pipeline
from homeostat.common.proto import inference_pb2 as pb

TOKEN_HEADER = "x-replay-token"  # noqa: S105 - the name of a header


class _Members(msgspec.Struct):
    """The members that tell the three kinds of input apart."""

    entities: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    vector: list[float | None] | dict[str, float | None] | msgspec.UnsetType = msgspec.UNSET
    unit: str | msgspec.UnsetType = msgspec.UNSET
    available_at: int | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name=REPLAY_STAMP)


_MARKERS = tuple(f'"{name}"'.encode() for name in ("entities", "vector", REPLAY_STAMP))
_members = msgspec.json.Decoder(_Members).decode
_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

Vector = list[float | None] | dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Request:
    """One row to predict. Of ``event``, ``entities`` and ``vector`` exactly one is there."""

    prediction_id: str
    unit: str
    event: bytes | None = None
    entities: dict[str, str] | None = None
    vector: Vector | None = None
    available_at: int | None = None

    def row(self, features: Sequence[str] | None, *, propensity: float, trace: str) -> pb.ScoreRow:
        """The row for a version with these ``features``; they are needed for vectors by name.

        Raises:
            InvalidInput: the vector does not fit the version.
        """
        row = pb.ScoreRow(
            prediction_id=self.prediction_id,
            unit=self.unit,
            propensity=propensity,
            traceparent=trace,
            available_at=self.available_at or 0,
        )
        if self.event is not None:
            row.event = self.event
        elif self.entities is not None:
            row.entities.keys.update(self.entities)
        else:
            row.vector.values.extend(_ordered(self.vector or [], features))
        return row


class Reader:
    """Reads the requests of one pipeline; resolved once per snapshot."""

    def __init__(self, pipeline: Pipeline, *, pii_key: bytes = b"") -> None:
        self._contract = EventContract(pipeline, pii_key=pii_key)
        self._unit = pipeline.unit
        self._entities = pipeline.entities
        self._names_entities = "entities" in pipeline.fields
        self._names_vector = "vector" in pipeline.fields

    def read(self, value: bytes, *, now: int, may_replay: bool) -> Request:
        """Read one row.

        Raises:
            InvalidEvent: not an event of this pipeline.
            InvalidInput: entity keys or a vector that cannot be used.
            Forbidden: a replay's stamp without its token.
        """
        prediction_id = os.urandom(16).hex()
        if not any(marker in value for marker in _MARKERS):
            return self._event(prediction_id, value, now, None)
        try:
            members = _members(value)
        except msgspec.ValidationError as error:
            raise InvalidInput(f"the request is invalid: {error}") from error
        except UNREADABLE as error:
            raise Unparsable(f"the request is not JSON: {why_unreadable(error)}") from error
        stamp = members.available_at if members.available_at is not msgspec.UNSET else None
        if stamp is not None and not may_replay:
            raise Forbidden(
                f"only a replay may set {REPLAY_STAMP}", fix=f"send the token in {TOKEN_HEADER}"
            )
        unit = _unit(members.unit)
        if members.vector is not msgspec.UNSET and not self._names_vector:
            return Request(
                prediction_id, unit or prediction_id, vector=members.vector, available_at=stamp
            )
        if members.entities is not msgspec.UNSET and not self._names_entities:
            return self._keys(prediction_id, members.entities, unit, stamp)
        return self._event(prediction_id, value, now, stamp)

    def _event(self, prediction_id: str, value: bytes, now: int, stamp: int | None) -> Request:
        if stamp is not None:
            value = _without_stamp(value)
        event = self._contract.parse(value, now=now if stamp is None else stamp)
        unit = str(getattr(event.payload, self._unit))
        return Request(prediction_id, unit, event=value, available_at=stamp)

    def _keys(
        self, prediction_id: str, keys: dict[str, str], unit: str | None, stamp: int | None
    ) -> Request:
        check_entity_keys(keys, self._entities)
        # Without the unit itself the keys stand for it: the same keys meet the same variant.
        unit = unit or keys.get(self._unit) or "\x1f".join(keys[name] for name in sorted(keys))
        return Request(prediction_id, unit, entities=keys, available_at=stamp)


def _unit(given: str | msgspec.UnsetType) -> str | None:
    """The unit that a caller names: it becomes a key, as an event's would."""
    if isinstance(given, msgspec.UnsetType):
        return None
    if violations := text_violations("unit", given, is_id=True):
        raise InvalidInput("the unit cannot be used", violations=violations)
    return given


def _without_stamp(value: bytes) -> bytes:
    members = _object(value)
    members.pop(REPLAY_STAMP)
    return msgspec.json.encode(members)


def _ordered(vector: Vector, features: Sequence[str] | None) -> list[float]:
    if isinstance(vector, dict):
        if features is None:
            raise TransientError(
                "the model's features are not known yet", fix="send the vector as a list"
            )
        violations = unknown_names(
            vector, features, what="no feature of the model", where="vector."
        )
        if violations:
            raise InvalidInput("the vector does not fit the model", violations=violations)
        vector = [vector.get(name) for name in features]
    elif features is not None and len(vector) != len(features):
        raise InvalidInput(
            f"the vector has {len(vector)} values, the model {len(features)} features",
            fix=f"the order is {', '.join(features)}",
        )
    return [math.nan if value is None else value for value in vector]
