"""What a pipeline file says about an aggregate: function, arguments, window, delay."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from enum import StrEnum

from homeostat.common.durations import format_duration, parse_duration, whole_milliseconds

LABEL = "label"  # the reserved field: the joined label of an event, folded at the event's own time


class WindowKind(StrEnum):
    """How a window's edges move; the module `layout` says how each is kept."""

    TUMBLING = "tumbling"
    HOPPING = "hopping"
    SLIDING = "sliding"
    SESSION = "session"
    DECAY = "decay"
    LIFETIME = "lifetime"


_EXAMPLES = {
    WindowKind.TUMBLING: "tumbling 5m",
    WindowKind.HOPPING: "hopping 1h every 5m",
    WindowKind.SLIDING: "sliding 30m",
    WindowKind.SESSION: "session 30m",
    WindowKind.DECAY: "decay 1h",
}
EDGED = (WindowKind.TUMBLING, WindowKind.HOPPING, WindowKind.SLIDING)  # ``size`` is their length
_OPENABLE = (WindowKind.TUMBLING, WindowKind.HOPPING)


@dataclass(frozen=True, slots=True)
class Window:
    """A span of event time that a value looks back over.

    - *sliding* covers ``(at - size, at]``: the head is exact to the event; the tail is rounded out
      to a pane of size/64 (rounded up to whole milliseconds), never in.
    - *tumbling* covers the last closed ``[k * size, (k + 1) * size)``, counted from 1970 in UTC;
      ``open`` reads the one that is still filling.
    - *hopping* covers the last closed ``[k * advance - size, k * advance)``, exact to the event;
      ``open`` reads the one that closes next.
    - *session* covers the newest run of events up to the read, none of them more than
      ``size`` (the gap) after the one before it; a session that is over stays until another
      begins. Two runs that a late event bridges are one. Of a session that goes on for longer
      than 64 gaps only the last 64 are covered, rounded out to a pane of gap/16. A read before
      the newest event sees the pane of its head whole.
    - *decay* covers every event, with a weight that halves with each ``size`` (the half-life, a
      second at least) of its age. A weight is within 0.03 % of that, and 0 after 24 half-lives.
      A read before the newest event sees the pane (half-life/16) of its head whole.
    - *lifetime* covers every event folded so far, whatever the time of the read.
    """

    kind: WindowKind
    size: timedelta | None = None
    open: bool = False
    advance: timedelta | None = None  # of a hopping window: from one to the next

    def __post_init__(self) -> None:
        if self.kind is WindowKind.LIFETIME:
            if self.size is not None:
                raise ValueError("a lifetime window has no size: write only `lifetime`")
        elif self.size is None or whole_milliseconds(self.size) == 0:
            example = _EXAMPLES[self.kind]
            raise ValueError(f"a {self.kind} window needs a size, for example `{example}`")
        if self.kind is WindowKind.DECAY and self.size and self.size < timedelta(seconds=1):
            raise ValueError("a half-life is a second at least: write, for example, `decay 1s`")
        if self.open and self.kind not in _OPENABLE:
            raise ValueError(
                f"`open` belongs to tumbling and hopping windows; a {self.kind} window is open"
            )
        self._check_advance()

    def _check_advance(self) -> None:
        if self.kind is not WindowKind.HOPPING:
            if self.advance is not None:
                raise ValueError(
                    f"`every` belongs to hopping windows: write `hopping`, not `{self.kind}`"
                )
            return
        if self.advance is None or whole_milliseconds(self.advance) == 0:
            raise ValueError("a hopping window needs an advance: write `hopping 1h every 5m`")
        if self.size is not None and self.size % self.advance:
            raise ValueError(
                f"a hopping window of {format_duration(self.size)} is not a whole number of "
                f"advances of {format_duration(self.advance)}: lengthen one of the two"
            )

    def __str__(self) -> str:
        size = [] if self.size is None else [format_duration(self.size)]
        advance = [] if self.advance is None else ["every", format_duration(self.advance)]
        return " ".join([self.kind, *size, *advance, *(["open"] if self.open else [])])


LIFETIME = Window(WindowKind.LIFETIME)


def parse_window(text: str) -> Window:
    """Read ``sliding 30m``, ``tumbling 5m open``, ``hopping 1h every 5m`` or ``lifetime``."""
    kind_text, *rest = text.split() or [""]
    kind = WindowKind(_known(kind_text, [kind.value for kind in WindowKind], what="window"))
    size = parse_duration(rest[0]) if rest else None
    advance, options = None, rest[1:]
    if options[:1] == ["every"]:
        advance, options = parse_duration(" ".join(options[1:2])), options[2:]
    if options not in ([], ["open"]):
        raise ValueError(f"{' '.join(options)!r} after {kind} {rest[0]} means nothing: remove it")
    return Window(kind, size, bool(options), advance)


class Function(StrEnum):
    """What is computed over the events of a window."""

    COUNT = "count"
    SUM = "sum"
    MEAN = "mean"
    MIN = "min"
    MAX = "max"
    STD = "std"
    FIRST = "first"
    LAST = "last"
    LAST_K = "last_k"
    DISTINCT = "distinct"
    QUANTILE = "quantile"
    RATE = "rate"
    SECONDS_SINCE_LAST = "seconds_since_last"
    DISTANCE = "distance"
    SPEED = "speed"


_FIELDS = {
    Function.COUNT: ((), ("field",)),
    Function.RATE: ((),),
    Function.SECONDS_SINCE_LAST: ((),),
    Function.DISTANCE: (("latitude", "longitude"),),
    Function.SPEED: (("latitude", "longitude"),),
}
_PARAMETERS = {Function.LAST_K: "k", Function.QUANTILE: "q"}
_WINDOWLESS = {
    Function.LAST_K,
    Function.SECONDS_SINCE_LAST,
    Function.DISTANCE,
    Function.SPEED,
}
_UNLABELLED = {Function.LAST_K, Function.DISTANCE, Function.SPEED}
MAX_K = 100
DECAYING = (Function.COUNT, Function.SUM, Function.MEAN)
TAKES_TEXT = (Function.COUNT, Function.DISTINCT)
_CALL = re.compile(r"\s*(\w+)\s*\(([^()]*)\)\s*")


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One function over the fields of the events in a window.

    Nulls are left out. An empty window has the count, sum, rate and distinct count 0; every other
    function is null there. What gives no error is exact, up to one rounding to a float64.

    - ``count()`` counts events, ``count(field)`` those whose field is not null.
    - ``rate()`` is events per second: the count over the window's declared size.
    - ``std`` is the population's (divided by n, 0 for a single value).
    - ``first`` and ``last`` break ties of event time by the hash of the event id (as an int64).
    - ``last_k(field, k)`` is the k-th newest value, so that ``last_k(amount, 1)`` is the newest;
      null where there are fewer. It looks at no window, and k is at most 100.
    - ``distinct(field)`` estimates how many different values there are, numbers or texts: a
      HyperLogLog of 1,024 registers, with a standard error of 3.25 % (a handful is counted
      right but for collisions: of 10 values, in 1 of 23 windows, one is missed).
    - ``quantile(field, q)`` is the value at the place ``floor(q * (n - 1))`` among the n values in
      order (0 is the minimum, 0.5 the median), to within 1/128 (0.8 %) of itself; exact where it
      is less than 128 units of the field's scale.
    - ``seconds_since_last()`` looks from the read to the newest event *before* it, so an event
      that is folded and then read at its own time sees the gap to its predecessor.
    - ``distance(latitude, longitude)`` is in km on a sphere, in degrees, between the two newest
      events at or before the read (within 0.6 % of the true one); ``speed`` is that by the time
      between them, in km/h, null where both carry the same time.

    Of a sketch (``distinct``, ``quantile``) an entity keeps at most 81,920 cells a window, the
    newest ones; a read that needs more is unavailable. 64 panes of full registers fit.

    The windowless ones remember a few events. After six newer ones than the read, they may be
    unavailable.
    """

    function: Function
    fields: tuple[str, ...] = ()
    parameter: float | None = None

    def __post_init__(self) -> None:
        forms, name = _FIELDS.get(self.function, (("field",),)), _PARAMETERS.get(self.function)
        fits = len(self.fields) in {len(form) for form in forms}
        if not fits or (self.parameter is None) != (name is None):
            own = () if name is None else (name,)
            wanted = " or ".join(f"{self.function}({', '.join((*form, *own))})" for form in forms)
            raise ValueError(f"{self} does not fit: write {wanted}")
        if self.function in _UNLABELLED and LABEL in self.fields:
            raise ValueError(f"{self} cannot look at labels; name fields of the event")
        if self.function is Function.LAST_K and self.parameter not in range(1, MAX_K + 1):
            raise ValueError(f"{self}: k is a whole number from 1 to {MAX_K}")
        if self.function is Function.QUANTILE and not 0 <= (self.parameter or 0) <= 1:
            raise ValueError(f"{self}: q is a share from 0 to 1, such as 0.95")

    @property
    def needs_window(self) -> bool:
        """Whether a window must be declared; the others look at the newest events only."""
        return self.function not in _WINDOWLESS

    @property
    def uses_label(self) -> bool:
        """Whether the value comes from joined labels, which arrive later than their events."""
        return LABEL in self.fields

    def __str__(self) -> str:
        own = [] if self.parameter is None else [repr(self.parameter).removesuffix(".0")]
        return f"{self.function}({', '.join([*self.fields, *own])})"


def parse_aggregate(text: str) -> Aggregate:
    """Read a call: ``count()``, ``quantile(amount, 0.95)`` or ``speed(latitude, longitude)``."""
    match = _CALL.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an aggregate: write a call, for example mean(amount)")
    name, inside = match.groups()
    function = Function(_known(name, [function.value for function in Function], what="aggregate"))
    arguments = [argument.strip() for argument in inside.split(",")] if inside.strip() else []
    parameter = None
    if function in _PARAMETERS and len(arguments) > 1:
        parameter = _number(arguments.pop(), f"{_PARAMETERS[function]} in {text!r}")
    for field in arguments:
        if not field.isidentifier():
            raise ValueError(f"{field!r} in {text!r} is not the name of a field")
    return Aggregate(function, tuple(arguments), parameter)


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{what} is {text!r}, which is not a number") from None


@dataclass(frozen=True, slots=True)
class AggregateFeature:
    """A named aggregate over a window that ends ``delay`` before the time of the read.

    A delay is for labels: ``(at - delay - size, at - delay]`` holds only events whose labels had
    time to arrive. A delayed sliding window is made of whole panes, so that both of its edges may
    lie up to one pane (size/64) earlier, never later.
    """

    name: str
    aggregate: Aggregate
    window: Window = LIFETIME
    delay: timedelta = timedelta(0)

    def __post_init__(self) -> None:
        if not self.aggregate.needs_window and self.window != LIFETIME:
            raise ValueError(f"feature {self.name}: {self.aggregate} takes no window; remove it")
        if whole_milliseconds(self.delay) and self.window.kind not in EDGED:
            raise ValueError(
                f"feature {self.name}: a delay needs a sliding, tumbling or hopping window; "
                f"{self.window} has no edge to move"
            )
        if self.window.kind is WindowKind.DECAY and self.aggregate.function not in DECAYING:
            raise ValueError(
                f"feature {self.name}: {self.aggregate} knows no weights; under {self.window} "
                f"write {', '.join(DECAYING)}, or choose another window"
            )
        if self.aggregate.function is Function.RATE and self.window.kind not in EDGED:
            raise ValueError(
                f"feature {self.name}: {self.aggregate} divides by the size of a sliding, tumbling "
                f"or hopping window; {self.window} has none: write, for example, sliding 1h"
            )


def _known(name: str, names: Iterable[str], *, what: str) -> str:
    names = list(names)
    if name in names:
        return name
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
    raise ValueError(f"unknown {what} {name!r}: {hint}")
