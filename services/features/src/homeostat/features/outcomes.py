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
import numpy as np

from homeostat.common.event_columns import EventColumns, event_hashes
from homeostat.common.schemas.labels import Outcome
from homeostat.features.hops import LabelHops


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


def joined_hops(
    joined: Sequence[Joined],
    *,
    fields: Sequence[str],
    places: Sequence[int],
    traceparents: Sequence[str | None],
) -> LabelHops:
    """Joined labels as hops, under the times and the keys (of ``fields``) of their events."""
    ids = [each.id for each in joined]
    events = [each.event for each in joined]
    return LabelHops(
        ids,
        event_hashes(ids),
        {name: [event.keys.get(name) for event in events] for name in fields},
        np.array([event.time for event in events], np.int64),
        np.array([each.label.available_at for each in joined], np.int64),
        np.array([each.label.label for each in joined], np.float64),
        np.array(places, np.int64),
        traceparents,
    )


_encode = msgspec.json.Encoder().encode
