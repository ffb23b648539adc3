"""What becomes of a label: joined with its event once, parked until it comes, or a correction.

The label index answers in versions. This module turns its answers into what is sent: an `Outcome`
for each version, and for the first one a `LabelHop` to every entity whose state folds labels. A
correction is a new outcome and leaves the state as it was: a fold cannot take back what it has
folded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from homeostat.common.schemas.hops import LabelHop
from homeostat.common.schemas.labels import Outcome


class IndexedEvent(msgspec.Struct, frozen=True, array_like=True):
    """What the label index knows of an event."""

    time: int
    entities: dict[str, str]


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

    def hops(self, entities: Sequence[str]) -> Mapping[str, tuple[str, bytes]]:
        """Key and hop for each of the entities that fold labels; nothing for a correction."""
        if self.version > 1:
            return {}
        hop = _encode(LabelHop(self.id, self.event.time, self.label.available_at, self.label.label))
        return {
            name: (self.event.entities[name], hop)
            for name in entities
            if name in self.event.entities
        }


_encode = msgspec.json.Encoder().encode
