"""What becomes of each row: a record to publish, or the problem that its sender is told. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from homeostat.common.errors import InvalidEvent
from homeostat.common.events import EventContract
from homeostat.common.schemas.labels import Label, read_label, read_replayed_label


@dataclass(frozen=True)
class Row:
    """A row that may be published; ``available_at`` (epoch ms) only under replay."""

    id: str
    key: bytes
    value: bytes
    available_at: int | None = None


Outcome = Row | InvalidEvent
Check = Callable[[bytes], Row]

_encode = msgspec.json.Encoder().encode


def check_rows(rows: Sequence[bytes], check: Check) -> list[Outcome]:
    """Check each row for itself: one that is wrong holds up no other."""
    outcomes: list[Outcome] = []
    for row in rows:
        try:
            outcomes.append(check(row))
        except InvalidEvent as error:
            outcomes.append(error)
    return outcomes


def live_event(contract: EventContract, now: int) -> Check:
    def check(row: bytes) -> Row:
        event = contract.parse(row, now=now)
        return Row(event.id, event.key.encode(), contract.encode(event))

    return check


def replayed_event(contract: EventContract) -> Check:
    def check(row: bytes) -> Row:
        event = contract.parse_replayed(row)
        return Row(event.id, event.key.encode(), contract.encode(event), event.intake)

    return check


def live_label(row: bytes) -> Row:
    return _label_row(read_label(row), None)


def replayed_label(row: bytes) -> Row:
    label = read_replayed_label(row)
    return _label_row(label, label.available_at)


def _label_row(label: Label, available_at: int | None) -> Row:
    return Row(label.id, label.id.encode(), _encode(Label(label.id, label.label)), available_at)
