"""From declared features to the tables that the kernels walk.

An entity's row is a few *lists*, each a sorted run of entries of equal width (int64 words):

- a **panes** list keeps one entry per non-empty pane of time: ``[pane index, accumulators…]``.
  Features with the same pane length and reach share it, and accumulators they have in common. A
  lifetime window is a list with a single pane. Panes further back than the reach are gone. For a
  session each pane keeps its first and its last event time, and a read walks back until the gap:
  so nothing has to be merged when a late event bridges two sessions. Under decay each pane keeps,
  beside a sum, the sum of its terms times their ages within the pane: weights are given by a read.
- a **recent** list keeps the newest few events: ``[event time, id hash, fields…]``. The first list
  of each row is always the recent ids, by which an event is recognised that has already arrived.
- a **registers** or **buckets** list is a sketch: ``[pane index, cell, accumulator]``, one entry
  per cell that is not empty. It has a capacity besides its reach: the newest cells stay.

Every accumulator is a commutative, associative, exact operation on integers, and every truncation
depends on the newest event time, or on the order of keys, alone. So a row is a function of the
*set* of events folded into it: no order of arrival, and no way of splitting and merging, can show.

A new kind of window or aggregate is a new `Span` or `Combine` and a new `Finish`; one that keeps
something else than panes is a new `ListKind`.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np

from homeostat.common.durations import whole_milliseconds
from homeostat.common.windows.spec import (
    LABEL,
    TAKES_TEXT,
    Aggregate,
    AggregateFeature,
    Function,
    WindowKind,
)
from homeostat.common.windows.tables import (
    CELLS,
    DECAY_PANES,
    DEFAULT_SCALE,
    FEATURE,
    LAYOUT_VERSION,
    LIST,
    MAX_CELLS,
    MAX_PANES,
    NEWER_EVENTS,
    OP,
    PANES_PER_GAP,
    PANES_PER_HALF_LIFE,
    PANES_PER_WINDOW,
    READ,
    RECENT_IDS,
    SCRATCH,
    SESSION_PANES,
    WORDS,
    Absent,
    Combine,
    Finish,
    Input,
    ListKind,
    Plan,
    Source,
    Span,
)


@dataclass(frozen=True, slots=True)
class Scale:
    """A field's fixed point: a value is ``units * multiplier / divisor``, one of the two is 1."""

    multiplier: float
    divisor: float


@dataclass(frozen=True)
class Layout:
    """A compiled definition: the plan, and what its columns and bits mean."""

    plan: Plan
    fields: tuple[str, ...]  # the event fields folded, in the order of their columns
    texts: frozenset[str]  # those that come as hashes
    scales: Mapping[str, Scale]  # of the others, and of the label if it is folded
    definition_hash: str


@dataclass(frozen=True, order=True)
class _List:
    kind: ListKind
    pane_ms: int  # 0: one pane for all time
    reach: int  # the panes kept, up to the newest event's; or the recent events kept
    fields: tuple[str, ...] = ()  # of a recent list, or of a sketch

    @property
    def key_words(self) -> int:
        """How many words of an entry tell it from the others, and order them."""
        return 1 if self.kind is ListKind.PANES else 2

    @property
    def capacity(self) -> int:
        """The most entries that count; of a sketch, one with fewer has lost none of its cells."""
        if self.kind in CELLS:
            return min(self.reach * CELLS[self.kind] + 1, MAX_CELLS)
        return self.reach


@dataclass(frozen=True, order=True)
class _Op:
    combine: Combine
    input: Input
    field: str = ""  # none: the event itself

    @property
    def words(self) -> int:
        return WORDS.get(self.combine, 1)


@dataclass(frozen=True, order=True)
class _Read:
    list: _List
    span: Span
    size_ms: int = 0
    delay_ms: int = 0

    @property
    def panes(self) -> int:
        """The most whole panes that it takes together."""
        return _whole_panes(self.span, self.size_ms, self.list.pane_ms)

    @property
    def session(self) -> _List | None:
        """The list whose panes keep the times by which a session is found."""
        if self.span is not Span.SESSION:
            return None
        return _List(ListKind.PANES, self.list.pane_ms, self.list.reach)


@dataclass(frozen=True)
class _Need:
    """What a feature's value is made of."""

    finish: Finish
    count: _Op | None = None
    value: _Op | None = None
    other: _Op | None = None  # squares; or the longitude; or the value's age
    age: _Op | None = None  # of what is counted
    parameter: float = 0.0  # k or q

    @property
    def ops(self) -> tuple[_Op, ...]:
        return tuple(op for op in (self.count, self.value, self.other, self.age) if op)


FIXED_PANES = {Span.SESSION: SESSION_PANES, Span.DECAY: DECAY_PANES}
AGES = {Input.ONE: Input.AGE, Input.VALID: Input.VALID_AGE, Input.VALUE: Input.VALUE_AGE}
DECAYED = {
    Finish.COUNT: Finish.DECAYED_COUNT,
    Finish.SUM: Finish.DECAYED_SUM,
    Finish.MEAN: Finish.DECAYED_MEAN,
}
SKETCHES = {Function.DISTINCT: ListKind.REGISTERS, Function.QUANTILE: ListKind.BUCKETS}
OPENED, CLOSED = _Op(Combine.MIN, Input.TIME), _Op(Combine.MAX, Input.TIME)
IDS = _List(ListKind.RECENT, 0, RECENT_IDS)


def compile_layout(
    entity: str,
    features: Sequence[AggregateFeature],
    *,
    scales: Mapping[str, float],
    texts: Collection[str],
    lateness: timedelta,
    absent: Absent,
) -> Layout:
    """Lay out the rows of one entity. Neither the names of features nor their order matter."""
    fields = tuple(sorted({f for x in features for f in x.aggregate.fields} - {LABEL}))
    is_labelled = any(feature.aggregate.uses_label for feature in features)
    known = {
        field: parse_scale(field, scales.get(field, DEFAULT_SCALE))
        for field in (*fields, *([LABEL] if is_labelled else []))
        if field not in texts
    }
    for feature in features:
        _check_texts(feature, texts)
    lateness_ms = whole_milliseconds(lateness)
    reads = [_read(feature, lateness_ms) for feature in features]
    needs = [
        _decayed(need) if read.span is Span.DECAY else need
        for read, need in zip(reads, (_need(x.aggregate, absent) for x in features), strict=True)
    ]
    definition = {
        "layout": [LAYOUT_VERSION, PANES_PER_WINDOW, RECENT_IDS, _recent_events(2)],
        "entity": entity,
        "features": sorted({f"{x.aggregate} {x.window} {x.delay}" for x in features}),
        "scales": {field: [scale.multiplier, scale.divisor] for field, scale in known.items()},
        "lateness_ms": lateness_ms,
        "absent": absent.value,
    }
    hashed = frozenset(texts) & {*fields}
    if hashed:
        definition["texts"] = sorted(hashed)
    return Layout(
        plan=_plan(fields, known, reads, needs),
        fields=fields,
        texts=hashed,
        scales=known,
        definition_hash=hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest(),
    )


def _check_texts(feature: AggregateFeature, texts: Collection[str]) -> None:
    aggregate = feature.aggregate
    if aggregate.function not in TAKES_TEXT and not {*texts}.isdisjoint(aggregate.fields):
        raise ValueError(
            f"feature {feature.name}: {aggregate} needs numbers; of a text there are only "
            f"{' and '.join(f'{function}(field)' for function in TAKES_TEXT)}"
        )


def parse_scale(field: str, scale: float) -> Scale:
    """Turn a declared scale (0.01: cents) into exact factors."""
    if np.isfinite(scale) and scale > 0:
        if scale >= 1 and scale == round(scale):
            return Scale(float(scale), 1.0)
        parts = round(1 / scale)
        if abs(scale * parts - 1) < 1e-9:
            return Scale(1.0, float(parts))
    raise ValueError(
        f"the scale {scale!r} of {field!r} does not fit: write a whole number, or one divided by "
        "a whole number, such as 1, 0.01 or 0.05"
    )


def _read(feature: AggregateFeature, lateness_ms: int) -> _Read:
    """Choose the list that answers a feature, and how much of it must be kept.

    A late event is answered at its own time, up to ``lateness`` before the newest one: the reach
    covers lateness, delay and window, and the panes that lie across their edges.
    """
    function, window = feature.aggregate.function, feature.window
    if function is Function.SECONDS_SINCE_LAST:
        return _Read(IDS, Span.NEWEST)
    if not feature.aggregate.needs_window:
        looked_at = int(feature.aggregate.parameter or 2)
        reach = _recent_events(looked_at)
        return _Read(_List(ListKind.RECENT, 0, reach, feature.aggregate.fields), Span.NEWEST)
    kind = SKETCHES.get(function, ListKind.PANES)
    fields = feature.aggregate.fields if function in SKETCHES else ()
    if window.size is None:
        return _Read(_List(kind, 0, 1, fields), Span.EVERYTHING)
    size_ms, delay_ms = whole_milliseconds(window.size), whole_milliseconds(feature.delay)
    if window.kind in (WindowKind.TUMBLING, WindowKind.HOPPING):
        pane_ms = whole_milliseconds(window.advance or window.size)
        span = Span.CURRENT if window.open else Span.LAST_CLOSED
    elif window.kind is WindowKind.SESSION:
        pane_ms, span = -(-size_ms // PANES_PER_GAP), Span.SESSION
    elif window.kind is WindowKind.DECAY:
        pane_ms, span = -(-size_ms // PANES_PER_HALF_LIFE), Span.DECAY
    else:
        pane_ms = -(-size_ms // PANES_PER_WINDOW)
        span = Span.SLIDING_CLOSED if delay_ms else Span.SLIDING
    reach = (lateness_ms + delay_ms) // pane_ms + _whole_panes(span, size_ms, pane_ms) + 2
    if reach > MAX_PANES:
        raise ValueError(
            f"feature {feature.name}: {window} with this delay and lateness needs {reach} panes "
            f"of {pane_ms} ms, more than {MAX_PANES}: lengthen the window or shorten the lateness"
        )
    return _Read(_List(kind, pane_ms, reach, fields), span, size_ms, delay_ms)


def _whole_panes(span: Span, size_ms: int, pane_ms: int) -> int:
    return FIXED_PANES.get(span, -(-size_ms // max(pane_ms, 1)))


def _recent_events(looked_at: int) -> int:
    """Choose how many events a recent list keeps: a power of two, so that features can share it."""
    return 1 << (looked_at + NEWER_EVENTS - 1).bit_length()


def _need(aggregate: Aggregate, absent: Absent) -> _Need:
    field = aggregate.fields[0] if aggregate.fields else ""
    counts_events = not field or (field == LABEL and absent is Absent.ZERO)
    count = _Op(Combine.ADD, Input.ONE) if counts_events else _Op(Combine.ADD, Input.VALID, field)
    total = _Op(Combine.ADD128, Input.VALUE, field)
    match aggregate.function:
        case Function.COUNT:
            return _Need(Finish.COUNT, count)
        case Function.RATE:
            return _Need(Finish.RATE, count)
        case Function.SUM:
            return _Need(Finish.SUM, value=total)
        case Function.MEAN:
            return _Need(Finish.MEAN, count, total)
        case Function.STD:
            return _Need(Finish.STD, count, total, _Op(Combine.ADD128, Input.SQUARE, field))
        case Function.MIN:
            return _Need(Finish.EXTREME, value=_Op(Combine.MIN, Input.VALUE, field))
        case Function.MAX:
            return _Need(Finish.EXTREME, value=_Op(Combine.MAX, Input.VALUE, field))
        case Function.FIRST:
            return _Need(Finish.STAMPED, value=_Op(Combine.EARLIEST, Input.STAMPED, field))
        case Function.LAST:
            return _Need(Finish.STAMPED, value=_Op(Combine.LATEST, Input.STAMPED, field))
        case Function.SECONDS_SINCE_LAST:
            return _Need(Finish.SECONDS_SINCE_LAST)
        case Function.LAST_K:
            kept = _Op(Combine.KEEP, Input.VALUE, field)
            return _Need(Finish.NTH_NEWEST, value=kept, parameter=aggregate.parameter or 1)
        case Function.DISTINCT:
            return _Need(Finish.DISTINCT, value=_Op(Combine.MAX, Input.CELL, field))
        case Function.QUANTILE:
            cell = _Op(Combine.ADD, Input.CELL, field)
            return _Need(Finish.QUANTILE, value=cell, parameter=aggregate.parameter or 0)
        case Function.SPEED | Function.DISTANCE:
            latitude, longitude = (_Op(Combine.KEEP, Input.VALUE, f) for f in aggregate.fields)
            is_speed = aggregate.function is Function.SPEED
            finish = Finish.SPEED if is_speed else Finish.DISTANCE
            return _Need(finish, value=latitude, other=longitude)


def _decayed(need: _Need) -> _Need:
    """Let each accumulator have its ages beside it, from which a read finds the weights."""
    count, value = need.count, need.value
    age = count and _Op(count.combine, AGES[count.input], count.field)
    other = value and _Op(value.combine, AGES[value.input], value.field)
    return _Need(DECAYED[need.finish], count, value, other, age)


def _plan(
    fields: tuple[str, ...],
    scales: Mapping[str, Scale],
    reads: Sequence[_Read],
    needs: Sequence[_Need],
) -> Plan:
    """Number lists, ops, reads and features in one canonical order, and write them as tables."""
    members: dict[_List, set[_Op]] = {IDS: set()}
    for read, need in zip(reads, needs, strict=True):
        members.setdefault(read.list, set()).update(need.ops)
        if read.session:
            members.setdefault(read.session, set()).update((OPENED, CLOSED))
    lists = [IDS, *sorted(members.keys() - {IDS})]
    ops = [(key, op) for key in lists for op in sorted(members[key])]
    number: dict[tuple[_List, _Op | None], int] = {(key, None): -1 for key in lists}
    number |= {pair: row for row, pair in enumerate(ops)}
    offsets, widths = _offsets(lists, ops)

    list_rows, headroom = [], 0
    for key in lists:
        own = [number[pair] for pair in ops if pair[0] == key]
        first, end = (own[0], own[-1] + 1) if own else (0, 0)
        width, capacity = widths[key], key.capacity
        block = block_words(width * min(4, capacity))
        headroom += 2 * block_words(width * (capacity + 1))  # all sizes on the way up, together
        list_rows.append(
            (key.kind, width, key.key_words, key.pane_ms, key.reach, capacity, first, end, block)
        )

    op_rows = []
    for (_, op), offset in zip(ops, offsets, strict=True):
        source = Source.LABEL if op.field == LABEL else Source.EVENT
        column = fields.index(op.field) if op.field in fields else 0
        scale = scales.get(op.field, Scale(1.0, 1.0))
        factors = (scale.multiplier, scale.divisor)
        op_rows.append((op.combine, op.input, source, column, offset, *factors))

    feature_rows: list[tuple[float, ...]] = []
    read_rows = []
    for read in sorted(set(reads)):
        first = len(feature_rows)
        for column, (other, need) in enumerate(zip(reads, needs, strict=True)):
            if other == read:
                uses = (
                    number[read.list, op] for op in (need.count, need.value, need.other, need.age)
                )
                feature_rows.append((need.finish, column, *uses, need.parameter))
        end = len(feature_rows)
        where = lists.index(read.list)
        session = (
            (lists.index(read.session), *(number[read.session, op] for op in (OPENED, CLOSED)))
            if read.session
            else (-1, -1, -1)
        )
        window = (read.span, read.size_ms, read.delay_ms, read.panes)
        read_rows.append((where, *window, first, end, *session))

    is_hash = np.zeros((len(lists), max(widths.values())), np.bool_)
    for (key, op), offset in zip(ops, offsets, strict=True):
        is_hash[lists.index(key), offset + 1 : offset + 2] |= op.input is Input.STAMPED
    for row, key in enumerate(lists):
        is_hash[row, 1] |= key.kind is ListKind.RECENT
    return Plan(
        np.array(list_rows, LIST),
        np.array(op_rows, OP),
        np.array(read_rows, READ),
        np.array(feature_rows, FEATURE),
        is_hash,
        headroom,
        max(*widths.values(), *(SCRATCH.get(key.kind, 0) for key in lists)),
    )


def _offsets(
    lists: Sequence[_List], ops: Sequence[tuple[_List, _Op]]
) -> tuple[list[int], dict[_List, int]]:
    """Place each op in its list's entries, behind the key; and so find each list's width."""
    widths = {key: key.key_words for key in lists}
    offsets = []
    for key, op in ops:
        offsets.append(widths[key])
        widths[key] += op.words
    return offsets, widths


def block_words(words: int) -> int:
    """Round up to the size of an arena block: a power of two."""
    return 1 << max(words - 1, 1).bit_length()
