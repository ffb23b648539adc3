"""Kernels that turn a row into feature values at an instant."""

import math
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homeostat.common.windows.compiled import kernel, side_kernel
from homeostat.common.windows.integers import squared_deviations, to_float
from homeostat.common.windows.rows import (
    LARGEST,
    NO_TIME,
    SMALLEST,
    Rows,
    Words,
    clear_entry,
    combine,
    first_live,
    lower_bound,
    oldest_pane,
    pane_of,
)
from homeostat.common.windows.sketches import (
    TOTAL,
    distinct,
    gather_buckets,
    gather_registers,
    quantile,
)
from homeostat.common.windows.tables import (
    Combine,
    Finish,
    ListKind,
    Plan,
    Span,
)

I64 = np.int64 | int
EARTH_RADIUS_KM = 6371.0088  # the mean radius of the IUGG
MS_PER_SECOND = 1_000.0
MS_PER_HOUR = 3_600_000.0


class Status(IntEnum):
    """What stands behind a value; only a present one is a number, the others are NaN."""

    PRESENT = 0
    NULL = 1  # the entity is known, but there is nothing to compute a value from
    MISSING = 2  # no event of this entity has been folded
    STALE = 3  # the store has fallen behind; set by whoever compares its progress
    UNAVAILABLE = 4  # there may be a value, but what it needs is out of reach, or the store is away


PRESENT, NULL, MISSING = int(Status.PRESENT), int(Status.NULL), int(Status.MISSING)
UNAVAILABLE = int(Status.UNAVAILABLE)

Values = NDArray[np.float64]
Statuses = NDArray[np.uint8]


@kernel
def evaluate_row(
    plan: Plan, rows: Rows, row: I64, at: I64, entry: Words, values: Values, statuses: Statuses
) -> None:
    """Write the value and status of each feature; row -1 stands for an entity never seen."""
    if row < 0 or rows.newest[row] == NO_TIME:
        values[:] = np.nan
        statuses[:] = MISSING
        return
    for number in range(plan.reads.size):
        read = plan.reads[number]
        status = PRESENT
        if read.span != Span.NEWEST:
            status = gather(plan, read, rows, row, at, entry)
        for i in range(read.first_feature, read.end_feature):
            feature = plan.features[i]
            value = np.nan
            if status == PRESENT:
                if read.span == Span.NEWEST:
                    value, outcome = newest_value(plan, feature, read, rows, row, at)
                elif feature.finish < Finish.RATE:
                    value, outcome = finish(plan, feature, entry)
                elif read.span == Span.DECAY:
                    value, outcome = decayed_value(plan, feature, read, rows, row, at, entry)
                else:
                    value, outcome = finish_rarely(plan, feature, read, entry)
            else:
                outcome = status
            values[feature.column] = value
            statuses[feature.column] = outcome


@kernel
def window_panes(plan: Plan, read: Any, rows: Rows, row: I64, at: I64) -> tuple[I64, I64]:
    """Number the first and the last pane that a read takes together."""
    spec, head = plan.lists[read.list], at - read.delay_ms
    if read.span == Span.SLIDING:
        return pane_of(spec, head - read.size_ms + 1), pane_of(spec, head)
    if read.span == Span.EVERYTHING:
        return np.int64(0), np.int64(0)
    if read.span == Span.SESSION:
        return session_panes(plan, read, rows, row, at)
    last = pane_of(spec, head)
    if read.span == Span.LAST_CLOSED:
        last -= 1
    elif read.span == Span.SLIDING_CLOSED:
        last = pane_of(spec, head + 1) - 1
    return last - read.panes + 1, last


@side_kernel
def session_panes(plan: Plan, read: Any, rows: Rows, row: I64, at: I64) -> tuple[I64, I64]:
    """Number the first and the last pane of the newest session that began by an instant.

    The first one is beyond reach where the session's beginning, or all of it, may have expired.
    """
    spec, state, arena = plan.lists[read.session], rows.lists[row, read.session], rows.arena
    opened, closed = plan.ops[read.opened].offset, plan.ops[read.closed].offset
    oldest = oldest_pane(spec, rows.newest[row])
    live = first_live(plan, rows, row, read.session)
    i = lower_bound(spec, rows, row, read.session, pane_of(spec, at) + 1) - 1
    if i < live:
        return oldest - 1, oldest - 1
    entry = state.block + i * spec.width
    last = arena[entry]
    cut = last - read.panes + 1
    while i > live:
        before = entry - spec.width
        if arena[before] < cut or arena[entry + opened] - arena[before + closed] > read.size_ms:
            return arena[entry], last
        entry = before
        i -= 1
    may_go_on = arena[entry + opened] - oldest * spec.pane_ms < read.size_ms
    if may_go_on and cut < oldest:
        return oldest - 1, last
    return arena[entry], last


@kernel
def gather(plan: Plan, read: Any, rows: Rows, row: I64, at: I64, entry: Words) -> int:
    """Combine the panes of a window into one entry."""
    spec = plan.lists[read.list]
    first, last = window_panes(plan, read, rows, row, at)
    if first < oldest_pane(spec, rows.newest[row]):
        return UNAVAILABLE
    state, width = rows.lists[row, read.list], spec.width
    end = lower_bound(spec, rows, row, read.list, last + 1)
    if spec.kind != ListKind.PANES:
        return gather_cells(plan, read, rows, row, first, end, entry)
    begin = end
    while begin > 0 and rows.arena[state.block + (begin - 1) * width] >= first:
        begin -= 1
    clear_entry(plan, spec, entry)
    start = state.block + begin * width
    for i in range(spec.first_op, spec.end_op):
        op = plan.ops[i]
        combine(op, entry, op.offset, rows.arena, start + op.offset, end - begin, width)
    return PRESENT


@side_kernel
def gather_cells(
    plan: Plan, read: Any, rows: Rows, row: I64, first: I64, end: I64, scratch: Words
) -> int:
    """Combine the panes of a sketch from the pane ``first`` to the entry ``end``."""
    spec, state = plan.lists[read.list], rows.lists[row, read.list]
    live = first_live(plan, rows, row, read.list)
    is_full = state.length - live == spec.capacity  # then cells older than the first may be gone
    if is_full and first <= rows.arena[state.block + live * spec.width]:
        return UNAVAILABLE
    begin = lower_bound(spec, rows, row, read.list, first)
    start, count = state.block + begin * spec.width, end - begin
    if spec.kind == ListKind.REGISTERS:
        gather_registers(rows.arena, start, count, scratch)
    else:
        gather_buckets(rows.arena, start, count, scratch)
    return PRESENT


@kernel
def scaled(op: Any, units: float, count: float) -> float:
    """Divide units by a count and give them back their scale, rounding as seldom as possible."""
    return float(units * op.multiplier / (op.divisor * count))


@kernel
def finish(plan: Plan, feature: Any, entry: Words) -> tuple[float, int]:
    """Compute a value, and whether there is one, from the accumulators of a window."""
    count = np.int64(1)
    if feature.count >= 0:
        count = entry[plan.ops[feature.count].offset]
    if feature.finish == Finish.COUNT:
        return float(count), PRESENT
    op = plan.ops[feature.value]
    at = op.offset
    if feature.finish == Finish.EXTREME:
        if entry[at] == LARGEST or entry[at] == SMALLEST:
            return np.nan, NULL
        return scaled(op, float(entry[at]), 1.0), PRESENT
    if feature.finish == Finish.STAMPED:
        if entry[at] == LARGEST or entry[at] == SMALLEST:
            return np.nan, NULL
        return scaled(op, float(entry[at + 2]), 1.0), PRESENT
    if count <= 0:
        return np.nan, NULL
    if feature.finish == Finish.STD:
        squares = plan.ops[feature.other].offset
        spread = squared_deviations(
            count, entry[at], entry[at + 1], entry[squares], entry[squares + 1]
        )
        return scaled(op, math.sqrt(spread / count), 1.0), PRESENT
    return scaled(op, to_float(entry[at], entry[at + 1]), float(count)), PRESENT


@side_kernel
def finish_rarely(plan: Plan, feature: Any, read: Any, entry: Words) -> tuple[float, int]:
    """Compute a value of the functions that `finish` leaves."""
    if feature.finish == Finish.RATE:
        count = entry[plan.ops[feature.count].offset]
        return count * MS_PER_SECOND / read.size_ms, PRESENT
    if feature.finish == Finish.DISTINCT:
        return distinct(entry), PRESENT
    if entry[TOTAL] == 0:
        return np.nan, NULL
    return scaled(plan.ops[feature.value], quantile(entry, feature.parameter), 1.0), PRESENT


@side_kernel
def decayed_value(
    plan: Plan, feature: Any, read: Any, rows: Rows, row: I64, at: I64, entry: Words
) -> tuple[float, int]:
    """Compute a value in which events count by their weight; ``entry`` holds their plain sums."""
    count = np.nan
    if feature.finish != Finish.DECAYED_SUM:
        count = decayed(plan, read, rows, row, at, feature.count, feature.age)
    if feature.finish == Finish.DECAYED_COUNT:
        return count, PRESENT
    op = plan.ops[feature.value]
    total = decayed(plan, read, rows, row, at, feature.value, feature.other)
    if feature.finish == Finish.DECAYED_SUM:
        return scaled(op, total, 1.0), PRESENT
    if entry[plan.ops[feature.count].offset] <= 0:
        return np.nan, NULL
    return scaled(op, total, count), PRESENT


@side_kernel
def decayed(plan: Plan, read: Any, rows: Rows, row: I64, at: I64, plain: I64, aged: I64) -> float:
    """Add up an accumulator, each pane with the weight of its middle.

    Within a pane weights are taken for a straight line, for which the ages are kept: what that
    leaves out is at most ``(ln 2 / 32)^2 / 2`` of a weight. Panes are added oldest first, so that
    equal rows give equal bits.
    """
    spec, state, arena = plan.lists[read.list], rows.lists[row, read.list], rows.arena
    first, last = window_panes(plan, read, rows, row, at)
    begin = lower_bound(spec, rows, row, read.list, first)
    end = lower_bound(spec, rows, row, read.list, last + 1)
    per_pane = 0.5 ** (spec.pane_ms / read.size_ms)
    half_pane, slope = 0.5 * spec.pane_ms, math.log(2.0) / read.size_ms
    total, pane = 0.0, first
    for i in range(begin, end):
        entry = state.block + i * spec.width
        units = units_of(plan.ops[plain], arena, entry)
        moment = units_of(plan.ops[aged], arena, entry) - half_pane * units
        total *= power(per_pane, arena[entry] - pane)
        total += units + slope * moment
        pane = arena[entry]
    return float(total * 0.5 ** ((at - (pane * spec.pane_ms + half_pane)) / read.size_ms))


@kernel
def units_of(op: Any, arena: Words, entry: I64) -> float:
    at = entry + op.offset
    if op.combine == Combine.ADD128:
        return float(to_float(arena[at], arena[at + 1]))
    return float(arena[at])


@kernel
def power(base: float, exponent: I64) -> float:
    """Raise to a whole power by squaring: the same bits everywhere, unlike a library's."""
    product = 1.0
    while exponent > 0:
        if exponent & 1:
            product *= base
        base *= base
        exponent >>= 1
    return product


@kernel
def newest_value(
    plan: Plan, feature: Any, read: Any, rows: Rows, row: I64, at: I64
) -> tuple[float, int]:
    """Compute a value from the newest events up to an instant.

    A list that is full may have dropped the event that is looked for: unavailable, not null.
    """
    spec, state, arena = plan.lists[read.list], rows.lists[row, read.list], rows.arena
    oldest = first_live(plan, rows, row, read.list)
    unknown = UNAVAILABLE if state.length - oldest == spec.reach else NULL
    if feature.finish == Finish.SECONDS_SINCE_LAST:
        before = lower_bound(spec, rows, row, read.list, at)
        if before <= oldest:
            return np.nan, unknown
        return (at - arena[state.block + (before - 1) * spec.width]) / MS_PER_SECOND, PRESENT
    until = lower_bound(spec, rows, row, read.list, at + 1)
    if feature.finish == Finish.NTH_NEWEST:
        place = until - np.int64(feature.parameter)
        if place < oldest:
            return np.nan, unknown
        nth, op = state.block + place * spec.width, plan.ops[feature.value]
        return scaled(op, float(arena[nth + op.offset]), 1.0), PRESENT
    if until < oldest + 2:
        return np.nan, unknown
    here = state.block + (until - 1) * spec.width
    there = here - spec.width
    elapsed = arena[here] - arena[there]
    if elapsed == 0 and feature.finish == Finish.SPEED:
        return np.nan, NULL
    latitude, longitude = plan.ops[feature.value], plan.ops[feature.other]
    distance = haversine_km(
        scaled(latitude, float(arena[there + latitude.offset]), 1.0),
        scaled(longitude, float(arena[there + longitude.offset]), 1.0),
        scaled(latitude, float(arena[here + latitude.offset]), 1.0),
        scaled(longitude, float(arena[here + longitude.offset]), 1.0),
    )
    if feature.finish == Finish.DISTANCE:
        return distance, PRESENT
    return distance * MS_PER_HOUR / elapsed, PRESENT


@kernel
def haversine_km(
    latitude: float, longitude: float, to_latitude: float, to_longitude: float
) -> float:
    """Measure the great circle between two points in degrees."""
    a, b = math.radians(latitude), math.radians(to_latitude)
    half_up = math.sin((b - a) / 2.0)
    half_across = math.sin(math.radians(to_longitude - longitude) / 2.0)
    squared = half_up * half_up + math.cos(a) * math.cos(b) * half_across * half_across
    return 2.0 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(squared, 1.0)))
