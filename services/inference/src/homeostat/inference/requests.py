"""The rows of ``predict``: an event, entity keys or a vector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec

from homeostat.common.errors import (
    UNREADABLE,
    InvalidInput,
    Unparsable,
    Violation,
    unknown_names,
    why_unreadable,
)
from homeostat.common.pipeline import Pipeline
from homeostat.inference.models import LoadedModel
from homeostat.inference.scoring import Input

_entities = msgspec.json.Decoder(dict[str, str], strict=True).decode
_vector = msgspec.json.Decoder(list[float | None] | dict[str, float | None], strict=True).decode
_scalar = msgspec.json.Decoder(str | int | float | None).decode


@dataclass(frozen=True, slots=True)
class Asked:
    """One thing to predict, before a model is chosen for it; ``unit`` is empty if none is named."""

    unit: str
    input: Input | NamedVector

    def input_for(self, model: LoadedModel) -> Input:
        """The input with a named vector put into the model's order.

        Raises:
            InvalidInput: names that are missing or unknown.
        """
        if isinstance(self.input, NamedVector):
            return self.input.ordered(model.version.features)
        return self.input


@dataclass(frozen=True, slots=True)
class NamedVector:
    """Values by name, null for what is unknown."""

    values: Mapping[str, float | None]

    def ordered(self, features: tuple[str, ...]) -> list[float]:
        violations = unknown_names(self.values, features, what="no such feature", where="vector.")
        violations += [
            Violation(f"vector.{name}", "missing") for name in features if name not in self.values
        ]
        if violations:
            raise InvalidInput("the vector does not fit the model", violations=violations)
        return [_number(self.values[name]) for name in features]


def read(row: bytes, pipeline: Pipeline) -> Asked:
    """Tell which of the three shapes a row has. An event is checked later, by its contract.

    Raises:
        Unparsable: not a JSON object.
        InvalidInput: entity keys or a vector of the wrong kind.
    """
    try:
        peek = _peek(pipeline.unit, *(name in pipeline.fields for name in ("entities", "vector")))(
            row
        )
    except msgspec.ValidationError as error:
        raise Unparsable(f"a row is a JSON object: {error}") from error
    except UNREADABLE as error:
        raise Unparsable(f"the row is not JSON: {why_unreadable(error)}") from error
    if isinstance(raw := getattr(peek, "entities", msgspec.UNSET), msgspec.Raw):
        keys = _decoded(_entities, raw, "entities", "an object of entity: key, both strings")
        return Asked(keys.get(pipeline.unit) or next(iter(keys.values()), ""), keys)
    if isinstance(raw := getattr(peek, "vector", msgspec.UNSET), msgspec.Raw):
        values = _decoded(_vector, raw, "vector", "numbers in the model's order, or by name")
        if isinstance(values, dict):
            return Asked("", NamedVector(values))
        return Asked("", [_number(value) for value in values])
    return Asked(_unit(getattr(peek, pipeline.unit)), row)


@cache
def _peek(unit: str, *is_field: bool) -> Any:
    """A decoder for what tells the shapes apart; a field of the same name makes it an event's."""
    names = [
        name for name, taken in zip(("entities", "vector"), is_field, strict=True) if not taken
    ]
    kind = msgspec.Raw | msgspec.UnsetType
    members = [(name, kind, msgspec.UNSET) for name in dict.fromkeys([unit, *names])]
    return msgspec.json.Decoder(msgspec.defstruct("Peek", members)).decode


def _decoded(decode: Any, raw: msgspec.Raw, path: str, wanted: str) -> Any:
    try:
        return decode(raw)
    except UNREADABLE as error:
        raise InvalidInput(
            f"{path!r} must be {wanted}", violations=[Violation(path, str(error))]
        ) from error


def _unit(raw: msgspec.Raw | msgspec.UnsetType) -> str:
    """The unit of an event; whatever else stands there is for the event's contract to refuse."""
    if not isinstance(raw, msgspec.Raw):
        return ""
    try:
        value = _scalar(raw)
    except UNREADABLE:
        return ""
    return "" if value is None else str(value)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
