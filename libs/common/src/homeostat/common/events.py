"""The contract of a pipeline's events: one definition for REST, gRPC and records put straight on a
topic.

A pipeline's fields are compiled once into a msgspec type; the fast path of a good event is one
decode. Only an event that fails it is looked at again, field by field, to tell everything that is
wrong with it.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from homeostat.common.errors import (
    UNREADABLE,
    InvalidEvent,
    InvalidInput,
    Reason,
    Violation,
    unknown_names,
    why_unreadable,
)
from homeostat.common.event_columns import F64, EventColumns
from homeostat.common.instants import MAX_MILLIS, MIN_MILLIS, parse_time, parse_times
from homeostat.common.pipeline.spec import FieldSpec, FieldType, Pii, Pipeline
from homeostat.common.topics import MAX_MESSAGE_BYTES

MAX_ID_LENGTH = 256
MAX_TEXT_LENGTH = 4_096
REPLAY_STAMP = "$available_at"  # the member by which a replayed row brings its intake along


@dataclass(frozen=True)
class Event:
    """One accepted event; personal data in ``payload`` is already dropped or hashed."""

    id: str
    time: int  # epoch ms
    key: str
    intake: int  # epoch ms, the pipeline's clock
    payload: msgspec.Struct


class Parsed(NamedTuple):
    """A batch of records: the good ones as columns, with their rows, the others with the reason."""

    columns: EventColumns
    rows: list[int]
    refused: list[tuple[int, InvalidEvent]]


class _FieldCheck(NamedTuple):
    """What is looked at in a field of every event, resolved once."""

    name: str
    is_text: bool
    is_id: bool


class EventContract:
    """Decodes, checks and publishes the events of one pipeline."""

    def __init__(self, pipeline: Pipeline, *, pii_key: bytes = b"") -> None:
        self._pipeline = pipeline
        self._source = pipeline.source
        self._future = round(pipeline.future.total_seconds() * 1000)
        self._type = _event_type(pipeline)
        self._decode = msgspec.json.Decoder(self._type).decode
        self._replayed = _replayed_type(self._type)
        self._decode_replayed = msgspec.json.Decoder(self._replayed).decode
        self._protect = _protections(pipeline, pii_key)
        self._accepted = _event_type(pipeline, is_accepted=True)
        self._accepted_fields = pipeline.published_fields
        self._published = self._accepted.__struct_fields__
        self._raw_checks = self._checks(pipeline.fields)
        self._accepted_checks = self._checks(self._accepted_fields)
        self._decode_accepted = msgspec.json.Decoder(self._accepted).decode
        self._decode_accepted_lines = msgspec.json.Decoder(self._accepted).decode_lines
        self._encode = msgspec.json.Encoder().encode

    def parse(self, value: bytes, *, now: int) -> Event:
        """Check one event as its sender wrote it; ``now`` (epoch ms) is its intake.

        Raises:
            InvalidEvent: with every violation, and the reason for the dead-letter header.
        """
        try:
            raw = self._decode(value)
        except UNREADABLE as error:
            raise self._refusal(value, self._type, error) from error
        return self._event(raw, now)

    def parse_published(self, value: bytes, *, now: int) -> Event:
        """Check a record of the events topic: what ``encode`` wrote, or an event put there as is.

        What carries a field that is dropped at the edge has not passed it, and is protected here.

        Raises:
            InvalidEvent: as ``parse``.
        """
        if len(value) > MAX_MESSAGE_BYTES:
            raise InvalidEvent(f"the event is larger than {MAX_MESSAGE_BYTES} bytes")
        try:
            accepted = self._decode_accepted(value)
        except UNREADABLE:
            return self.parse(value, now=now)
        return self._identified(accepted, self._checked(accepted, now, self._accepted_checks), now)

    def parse_published_batch(self, values: Sequence[bytes], intakes: Sequence[int]) -> Parsed:
        """Check many records of the events topic: as ``parse_published`` does each, in columns."""
        payloads = self._decode_lines(values)
        if payloads is not None:
            with suppress(ValueError):
                columns = self.columns_of(payloads)
                if self._is_sound(columns, intakes):
                    return Parsed(columns, list(range(len(values))), [])
        return self._parse_each(values, intakes)

    def _decode_lines(self, values: Sequence[bytes]) -> list[Any] | None:
        """The payloads, unless some record must be looked at on its own."""
        lines = b"\n".join(values)
        # No record has a line break of its own, so that each line that decodes is one record.
        if lines.count(b"\n") != len(values) - 1 or max(map(len, values)) > MAX_MESSAGE_BYTES:
            return None
        try:
            payloads = self._decode_accepted_lines(lines)
        except UNREADABLE:
            return None
        return payloads if len(payloads) == len(values) else None

    def _is_sound(self, columns: EventColumns, intakes: Sequence[int]) -> bool:
        """Whether nothing about any of the events could be a violation."""
        if np.any(columns.times - np.asarray(intakes, np.int64) > self._future):
            return False
        if any(np.isinf(column).any() for column in columns.numbers.values()):
            return False
        return all(
            _are_plain(columns.strings[name], is_id=is_id)
            for name, is_text, is_id in self._accepted_checks
            if is_text
        )

    def _parse_each(self, values: Sequence[bytes], intakes: Sequence[int]) -> Parsed:
        payloads, rows, refused = [], [], []
        for row, (value, intake) in enumerate(zip(values, intakes, strict=True)):
            try:
                payloads.append(self.parse_published(value, now=intake).payload)
            except InvalidEvent as error:
                refused.append((row, error))
            else:
                rows.append(row)
        return Parsed(self.columns_of(payloads), rows, refused)

    def parse_replayed(self, value: bytes) -> Event:
        """Check one event of a replay, which brings its intake along as ``$available_at``.

        Raises:
            InvalidEvent: as ``parse``; also when the stamp is missing.
        """
        try:
            raw: Any = self._decode_replayed(value)
        except UNREADABLE as error:
            raise self._refusal(value, self._replayed, error) from error
        return self._event(raw, raw.available_at)

    def parse_mapping(self, document: Mapping[str, Any], *, now: int) -> Event:
        """Check an event that has been read already (gRPC, a file's row)."""
        return self.parse(self._encode(document), now=now)

    def encode(self, event: Event) -> bytes:
        """The record that is published: the accepted fields, nothing else."""
        return self._encode(event.payload)

    def columns_of(self, rows: Sequence[Any]) -> EventColumns:
        """Accepted payloads as columns.

        Raises:
            ValueError: a time is none.
        """
        source = self._source
        names = self._accepted_fields
        return EventColumns(
            ids=[getattr(row, source.id) for row in rows],
            times=parse_times([getattr(row, source.time) for row in rows]),
            strings={
                name: [getattr(row, name) for row in rows]
                for name, spec in names.items()
                if spec.type is FieldType.STRING
            },
            numbers={
                name: _numbers([getattr(row, name) for row in rows], spec)
                for name, spec in names.items()
                if spec.type is not FieldType.STRING
            },
        )

    def _event(self, raw: Any, now: int) -> Event:
        time = self._checked(raw, now, self._raw_checks)
        payload = self._accepted(
            **{name: self._protect.get(name, _same)(getattr(raw, name)) for name in self._published}
        )
        return self._identified(payload, time, now)

    def _identified(self, payload: msgspec.Struct, time: int, now: int) -> Event:
        source = self._source
        return Event(getattr(payload, source.id), time, getattr(payload, source.key), now, payload)

    def _checks(self, fields: Mapping[str, FieldSpec]) -> tuple[_FieldCheck, ...]:
        source = self._source
        identities = (source.id, source.key, self._pipeline.unit)
        return tuple(
            _FieldCheck(name, spec.type is FieldType.STRING, name in identities)
            for name, spec in fields.items()
        )

    def _checked(self, raw: Any, now: int, fields: Sequence[_FieldCheck]) -> int:
        """The event's time, once everything about the event is in order."""
        time_name = self._source.time
        violations: list[Violation] = []
        try:
            time = parse_time(getattr(raw, time_name))
        except ValueError as error:
            raise InvalidEvent(
                "the event's time cannot be used", violations=[Violation(time_name, str(error))]
            ) from error
        if time > now + self._future:
            raise InvalidEvent(
                f"the event lies {timedelta(milliseconds=time - now)} in the future",
                reason=Reason.FUTURE,
                violations=[
                    Violation(
                        time_name, "later than intake plus the allowed skew", "check the unit"
                    )
                ],
            )
        for name, is_text, is_id in fields:
            value = getattr(raw, name)
            if is_text:
                if value is not None:
                    violations.extend(text_violations(name, value, is_id=is_id))
            elif isinstance(value, float) and not math.isfinite(value):
                violations.append(Violation(name, "must be a finite number"))
        if violations:
            raise InvalidEvent("the event is invalid", violations=violations)
        return time

    def _refusal(
        self, value: bytes, expected: type[msgspec.Struct], error: Exception
    ) -> InvalidEvent:
        """Everything that is wrong with an event that did not decode."""
        try:
            document = msgspec.json.decode(value)
        except RecursionError as endless:
            error = endless
        except UNREADABLE:
            pass  # the first error names the place
        else:
            return self._violations(document, expected)
        return InvalidEvent(
            f"the event is not JSON: {why_unreadable(error)}", reason=Reason.UNPARSABLE
        )

    def _violations(self, document: Any, expected: type[msgspec.Struct]) -> InvalidEvent:
        if not isinstance(document, dict):
            return InvalidEvent("an event is not a JSON object", reason=Reason.UNPARSABLE)
        fields = {field.encode_name: field for field in msgspec.structs.fields(expected)}
        violations = unknown_names(document, fields, what="unknown field")
        for name, field in fields.items():
            if name not in document:
                if field.required:
                    violations.append(Violation(name, "missing"))
                continue
            try:
                msgspec.convert(document[name], field.type, strict=True)
            except msgspec.ValidationError as problem:
                violations.append(Violation(name, str(problem)))
        return InvalidEvent("the event is invalid", violations=violations)


def check_entity_keys(keys: Mapping[str, str], known: Sequence[str]) -> None:
    """Refuse keys of a lookup that no event could have.

    Raises:
        InvalidInput: with every violation.
    """
    violations = entity_key_violations(keys, known, where="entities")
    if not keys or violations:
        raise unusable_entity_keys(known, violations)


def entity_key_violations(
    keys: Mapping[str, str], known: Sequence[str], *, where: str
) -> list[Violation]:
    """What is wrong with the keys of one lookup; that there are none at all is for the caller."""
    violations = unknown_names(keys, known, what="no entity of this pipeline", where=f"{where}.")
    for name in known:
        if name in keys:
            violations += text_violations(f"{where}.{name}", keys[name], is_id=True)
    return violations


def unusable_entity_keys(known: Sequence[str], violations: Sequence[Violation]) -> InvalidInput:
    return InvalidInput(
        "the entity keys cannot be used",
        fix=f"give some of: {', '.join(known)}",
        violations=violations,
    )


def _same(value: Any) -> Any:
    return value


def _numbers(values: list[Any], spec: FieldSpec) -> F64:
    if spec.type is FieldType.CATEGORY:
        index = {name: float(place) for place, name in enumerate(spec.values or ())}
        return np.array([index.get(value, math.nan) for value in values], np.float64)
    return np.array([math.nan if value is None else value for value in values], np.float64)


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def text_violations(name: str, value: str, *, is_id: bool) -> list[Violation]:
    """What is wrong with a text that may become a key."""
    limit = MAX_ID_LENGTH if is_id else MAX_TEXT_LENGTH
    if len(value) > limit:
        return [Violation(name, f"longer than {limit} characters")]
    if is_id and not value:
        return [Violation(name, "must not be empty")]
    if _CONTROL.search(value):
        return [Violation(name, "contains a control character")]
    return []


def _are_plain(texts: Sequence[str | None], *, is_id: bool) -> bool:
    """Whether `text_violations` would find nothing in any of the texts."""
    known = [text for text in texts if text is not None]
    if not known:
        return True
    lengths = list(map(len, known))
    limit = MAX_ID_LENGTH if is_id else MAX_TEXT_LENGTH
    is_fitting = max(lengths) <= limit and (min(lengths) > 0 or not is_id)
    return is_fitting and _CONTROL.search("".join(known)) is None


def _event_type(pipeline: Pipeline, *, is_accepted: bool = False) -> type[msgspec.Struct]:
    """The msgspec type of an event as sent, or as accepted (personal data gone or hashed)."""
    fields: list[Any] = [(pipeline.source.time, int | float | str)]
    if pipeline.source.id not in pipeline.fields:  # ``id: row``: the intake numbers a file's rows
        fields.append((pipeline.source.id, str))
    optional: list[Any] = []
    for name, spec in pipeline.fields.items():
        if is_accepted and spec.pii is Pii.DROP:
            continue
        kind = _field_type(spec)
        if spec.optional:
            optional.append((name, kind | None, None))
        else:
            fields.append((name, kind))
    return msgspec.defstruct(
        "Event", [*fields, *optional], forbid_unknown_fields=True, frozen=True, gc=False
    )


def _replayed_type(event: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The same, with the stamp that only a replay may set."""
    return msgspec.defstruct(
        "ReplayedEvent",
        [("available_at", Annotated[int, msgspec.Meta(ge=MIN_MILLIS, le=MAX_MILLIS)])],
        bases=(event,),
        rename={"available_at": REPLAY_STAMP},
        kw_only=True,
        forbid_unknown_fields=True,
        frozen=True,
        gc=False,
    )


def _field_type(spec: FieldSpec) -> Any:
    low, high = spec.minimum, spec.maximum
    match spec.type:
        case FieldType.STRING:
            return str
        case FieldType.BOOLEAN:
            return bool
        case FieldType.INTEGER:
            lowest = -(2**53) if low is None else math.ceil(low)
            highest = 2**53 if high is None else math.floor(high)
            return Annotated[int, msgspec.Meta(ge=lowest, le=highest)]
        case FieldType.CATEGORY:
            values = "|".join(map(re.escape, spec.values or ()))
            return Annotated[str, msgspec.Meta(pattern=rf"^({values})\Z")]
        case _:
            return Annotated[float, msgspec.Meta(ge=low, le=high)]


def _protections(pipeline: Pipeline, key: bytes) -> dict[str, Callable[[Any], Any]]:
    """How each personal field is made harmless before it reaches Kafka: a keyed hash."""

    def hashed(value: str | None) -> str | None:
        if value is None:
            return None
        return hmac.new(key, value.encode(), hashlib.sha256).hexdigest()[:32]

    return {name: hashed for name, spec in pipeline.fields.items() if spec.pii is Pii.HASH}
