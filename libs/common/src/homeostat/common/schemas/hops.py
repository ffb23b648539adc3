"""What passes from entity to entity inside ``features``: events with their values, and labels."""

from __future__ import annotations

import msgspec


class EventHop(msgspec.Struct, frozen=True, tag="event", tag_field="kind", gc=False):
    """An event on its way through the entities.

    ``values`` and ``statuses`` hold what the entities before computed, in the order of the
    pipeline's aggregate features; null stands for what is still to come or was not there.
    """

    id: str
    time: int  # epoch ms
    intake: int  # epoch ms, the pipeline's clock
    event: msgspec.Raw
    values: list[float | None]
    statuses: list[int]
    is_scored: bool = True


class LabelHop(msgspec.Struct, frozen=True, tag="label", tag_field="kind", gc=False):
    """A joined label; it changes state and emits nothing."""

    id: str
    time: int  # of the event, epoch ms
    intake: int
    label: float


Hop = EventHop | LabelHop
