"""What becomes of a label: joined with its event once, parked until it comes, or a correction.

The label index answers in versions. This module turns its answers into what is sent: an `Outcome`
for each version, and for the first one a label to every entity whose state folds labels. A
correction is a new outcome and leaves the state as it was: a fold cannot take back what it has
folded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from homeostat.common.event_columns import EventColumns
from homeostat.common.schemas.labels import Outcome


@dataclass(frozen=True)
class IndexedEvent:
    """What the label index knows of an event."""

    time: int  # epoch ms
    entities: dict[str, str]  # keys; one that is null is left out


def indexed(events: EventColumns, row: int, entities: Sequence[str]) -> IndexedEvent:
    """One of many events, as the label index knows it."""
    keys = ((entity, events.strings[entity][row]) for entity in entities)
    known = {entity: key for entity, key in keys if key is not None}
    return IndexedEvent(int(events.times[row]), known)


class KnownLabel(msgspec.Struct, frozen=True, array_like=True):
    """What the label index knows of a label."""

    label: float
    available_at: int


@dataclass(frozen=True)
class Joined:
    """One version of a label, together with the event that it judges."""

    id: str
    event: IndexedEvent
    label: KnownLabel
    version: int

    def outcome(self) -> bytes:
        return _encode(
            Outcome(
                self.id,
                self.label.label,
                self.event.time,
                self.label.available_at,
                self.event.entities,
                self.version,
            )
        )


_encode = msgspec.json.Encoder().encode
