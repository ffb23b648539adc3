"""What becomes of a label: joined with its event once, parked until it comes, or a correction.

The label index answers in versions. This module turns its answers into what is sent: an `Outcome`
for each version, and for the first one a label on the log of the source's key, from where it takes
the way of the events. A correction is a new outcome and leaves the state as it was: a fold cannot
take back what it has folded.
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
    keys: dict[str, str]  # by field that may be an entity's key; one that is null is left out


def indexed(events: EventColumns, row: int, fields: Sequence[str]) -> IndexedEvent:
    """One of many events, as the label index knows it."""
    keys = ((name, events.strings[name][row]) for name in fields)
    return IndexedEvent(
        int(events.times[row]), {name: key for name, key in keys if key is not None}
    )


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

    def outcome(self, entities: Sequence[str]) -> bytes:
        """What everybody is told, with the keys of the pipeline's entities."""
        keys = self.event.keys
        return _encode(
            Outcome(
                self.id,
                self.label.label,
                self.event.time,
                self.label.available_at,
                {name: keys[name] for name in entities if name in keys},
                self.version,
            )
        )


_encode = msgspec.json.Encoder().encode
