"""The tables that a definition becomes, and the numbers in them: what kernels know of a layout."""

from enum import IntEnum, StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LAYOUT_VERSION = 1
PANES_PER_WINDOW = 64
PANES_PER_GAP = 16  # of a session: at least 1, so that no session ends within a pane
SESSION_PANES = 64 * PANES_PER_GAP
PANES_PER_HALF_LIFE = 16
DECAY_PANES = 24 * PANES_PER_HALF_LIFE
MAX_PANES = 1 << 17  # of one list: 64 for the window, the rest for delay and lateness
RECENT_IDS = 32  # event ids by which a row recognises what it has already folded
NEWER_EVENTS = 6  # than the read: so many may have come, and its own newest ones are still kept
DEFAULT_SCALE = 1e-6
REGISTER_BITS = 10
REGISTERS = 1 << REGISTER_BITS
LARGEST_RANK = 64 - REGISTER_BITS + 1
BUCKETS_PER_OCTAVE = 64
LARGEST_BUCKET = 48 * BUCKETS_PER_OCTAVE  # that of 2^53 units; negative values have negative ones
MAX_CELLS = 80 * REGISTERS  # of one list: 64 full panes, those at the edges, and some late ones


class Absent(StrEnum):
    """What an event without a label says to ``count``, ``mean`` and ``std`` of labels.

    The other aggregates look only at the labels that there are.
    """

    ZERO = "zero"  # the same as the label 0: it is in the denominator
    DROP = "drop"  # nothing


class ListKind(IntEnum):
    PANES = 0
    RECENT = 1
    REGISTERS = 2  # of `distinct`
    BUCKETS = 3  # of `quantile`


CELLS = {ListKind.REGISTERS: REGISTERS, ListKind.BUCKETS: 2 * LARGEST_BUCKET + 1}  # of a pane
SCRATCH = {  # words that a read needs to combine panes, besides one entry
    ListKind.REGISTERS: REGISTERS + LARGEST_RANK + 1,
    ListKind.BUCKETS: 2 * LARGEST_BUCKET + 4,
}


class Combine(IntEnum):
    """How two accumulators of one kind become one; each is commutative and associative."""

    ADD = 0
    ADD128 = 1  # two words, low limb first
    MIN = 2
    MAX = 3
    EARLIEST = 4  # three words: event time, id hash, value; compared in this order
    LATEST = 5
    KEEP = 6  # of a recent list: a word of the entry itself, nothing to combine


class Input(IntEnum):
    """What one event contributes to an accumulator."""

    ONE = 0  # counts events, null or not
    VALID = 1  # counts values
    VALUE = 2
    SQUARE = 3
    STAMPED = 4  # event time, id hash, value
    CELL = 5  # of a sketch: where the value falls, and what it brings there
    TIME = 6  # of the event, and of its label alike; from here on `lift_time`
    AGE = 7  # of an event, null or not: from the beginning of its pane
    VALID_AGE = 8
    VALUE_AGE = 9  # the product of the two


class Source(IntEnum):
    """Which record brings the contribution: the event itself, or its label later on."""

    EVENT = 0
    LABEL = 1


class Span(IntEnum):
    """Which entries of a list a read looks at."""

    SLIDING = 0
    SLIDING_CLOSED = 1  # whole panes only, for windows with a delay
    LAST_CLOSED = 2  # of windows that advance by one pane
    CURRENT = 3  # the one that closes next
    EVERYTHING = 4
    NEWEST = 5  # the newest events of a recent list
    SESSION = 6
    DECAY = 7


class Finish(IntEnum):
    """How a value comes from the accumulators of a read."""

    COUNT = 0
    SUM = 1
    MEAN = 2
    STD = 3
    EXTREME = 4
    STAMPED = 5
    SECONDS_SINCE_LAST = 6
    SPEED = 7
    DISTANCE = 8
    NTH_NEWEST = 9
    RATE = 10  # from here on `finish_rarely`
    DISTINCT = 11
    QUANTILE = 12
    DECAYED_COUNT = 13  # from here on under decay
    DECAYED_SUM = 14
    DECAYED_MEAN = 15


WORDS = {Combine.ADD128: 2, Combine.EARLIEST: 3, Combine.LATEST: 3}  # the others take one


def _table(integers: str, floats: str = "") -> np.dtype[Any]:
    columns = [(name, np.int64) for name in integers.split()]
    return np.dtype([*columns, *((name, np.float64) for name in floats.split())])


LIST = _table("kind width key_words pane_ms reach capacity first_op end_op first_block")
OP = _table("combine input source field offset", "multiplier divisor")
READ = _table(
    "list span size_ms delay_ms panes first_feature end_feature"
    " session opened closed"  # the list that keeps a session's times, and its ops; or -1
)
FEATURE = _table("finish column count value other age", "parameter")  # the last four: ops


class Plan(NamedTuple):
    """The tables of one fold, as the kernels take them."""

    lists: NDArray[Any]  # of LIST
    ops: NDArray[Any]  # of OP, those of a list side by side
    reads: NDArray[Any]  # of READ
    features: NDArray[Any]  # of FEATURE, those of a read side by side
    is_hash: NDArray[np.bool_]  # [list, word]: packed as it is; all other words are small numbers
    headroom: int  # arena words that one row can come to take, while it grows
    scratch: int  # words that a fold or a read needs for itself
