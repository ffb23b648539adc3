"""Labels as they are sent, and outcomes: labels joined with the event that they judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

import msgspec

from homeostat.common.errors import (
    UNREADABLE,
    InvalidEvent,
    Reason,
    Violation,
    why_unreadable,
)
from homeostat.common.events import REPLAY_STAMP, text_violations
from homeostat.common.instants import MAX_MILLIS, MIN_MILLIS


class Label(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``label`` of the event ``id``; the record's stamp says when it became known."""

    id: str
    label: float


class ReplayedLabel(Label, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A label of a replay, with the instant (epoch ms) at which it became known."""

    available_at: Annotated[int, msgspec.Meta(ge=MIN_MILLIS, le=MAX_MILLIS)] = msgspec.field(
        name=REPLAY_STAMP
    )


class Outcome(msgspec.Struct, frozen=True):
    """A label that found its event. ``version`` counts corrections of the same event from 1."""

    id: str
    label: float
    event_time: int  # epoch ms
    available_at: int  # epoch ms: from when on serving or training may know it
    entities: dict[str, str]
    version: int = 1


def read_label(value: bytes) -> Label:
    """Check one label, whichever way it came.

    Raises:
        InvalidEvent: with the reason for the dead-letter header.
    """
    return _read(_decode, value)


def read_replayed_label(value: bytes) -> ReplayedLabel:
    """Check one label of a replay, which says when it became known.

    Raises:
        InvalidEvent: as ``read_label``; also when the stamp is missing.
    """
    return _read(_decode_replayed, value)


L = TypeVar("L", bound=Label)
_decode = msgspec.json.Decoder(Label).decode
_decode_replayed = msgspec.json.Decoder(ReplayedLabel).decode


def _read(decode: Callable[[bytes], L], value: bytes) -> L:
    try:
        label = decode(value)
    except msgspec.ValidationError as error:
        raise InvalidEvent(
            f"the label is invalid: {error}", fix='send {"id": "…", "label": 0 or 1}'
        ) from error
    except UNREADABLE as error:
        raise InvalidEvent(
            f"the label is not JSON: {why_unreadable(error)}", reason=Reason.UNPARSABLE
        ) from error
    violations = text_violations("id", label.id, is_id=True)
    if label.label not in (0.0, 1.0):
        violations.append(Violation("label", "must be 0 or 1"))
    if violations:
        raise InvalidEvent("the label is invalid", violations=violations)
    return label
