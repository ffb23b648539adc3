"""The label index in memory: what the features service keeps in Redis, with the same answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from homeostat.features.outcomes import IndexedEvent, Joined, KnownLabel


@dataclass(eq=False)
class _Entry:
    event: IndexedEvent | None = None
    labels: list[KnownLabel] = field(default_factory=list)


class LabelIndex:
    """Joins a label with its event once, whichever comes first."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def add_event(self, event_id: str, event: IndexedEvent) -> list[Joined]:
        """The labels that were waiting for this event; none when it is known already."""
        entry = self._entries.setdefault(event_id, _Entry())
        if entry.event is not None:
            return []
        entry.event = event
        return [
            Joined(event_id, event, label, version)
            for version, label in enumerate(entry.labels, start=1)
        ]

    def add_label(self, event_id: str, label: KnownLabel) -> Joined | None:
        """The label with its event; ``None`` for one that waits, or only repeats the last."""
        entry = self._entries.setdefault(event_id, _Entry())
        if entry.labels and entry.labels[-1].label == label.label:
            return None
        entry.labels.append(label)
        if entry.event is None:
            return None
        return Joined(event_id, entry.event, label, len(entry.labels))
