"""Windowed aggregates: the one implementation, for stream, online reads, backfill and training.

`spec` is what a pipeline file says, `layout` turns it into `tables`; `rows`, `sketches`, `reading`,
`packing` and `batches` are the compiled kernels that walk them, `state` is a worker's memory, and
`fold` is the face of it all.
"""

from homeostat.common.windows.fold import EntityFold, Evaluated, Folded, Read, UnreadableRow
from homeostat.common.windows.reading import Status
from homeostat.common.windows.rows import Events
from homeostat.common.windows.spec import (
    LABEL,
    LIFETIME,
    TAKES_TEXT,
    Aggregate,
    AggregateFeature,
    Function,
    Window,
    WindowKind,
    parse_aggregate,
    parse_window,
)
from homeostat.common.windows.state import State
from homeostat.common.windows.tables import LAYOUT_VERSION, Absent

__all__ = [
    "LABEL",
    "LAYOUT_VERSION",
    "LIFETIME",
    "TAKES_TEXT",
    "Absent",
    "Aggregate",
    "AggregateFeature",
    "EntityFold",
    "Evaluated",
    "Events",
    "Folded",
    "Function",
    "Read",
    "State",
    "Status",
    "UnreadableRow",
    "Window",
    "WindowKind",
    "parse_aggregate",
    "parse_window",
]
