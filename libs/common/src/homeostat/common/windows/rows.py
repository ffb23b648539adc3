"""Kernels on rows: sorted lists of entries in an arena, and the monoid that folds into them.

A list is a block of the arena that doubles when it is full; freed blocks are chained by size. Each
operation on a row takes at most `Plan.headroom` words: `has_room` asks before it starts, so that
nothing is ever half done.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from homeostat.common.windows.compiled import kernel, side_kernel
from homeostat.common.windows.integers import add128, multiply64
from homeostat.common.windows.sketches import bucket_of, register_of
from homeostat.common.windows.tables import Combine, Input, ListKind, Plan, Source

I64 = np.int64 | int
Words = NDArray[np.int64]

SMALLEST, LARGEST = np.iinfo(np.int64).min, np.iinfo(np.int64).max
NO_TIME = SMALLEST  # the newest event time of a row that does not exist
BLOCK_SIZES = 48  # powers of two

LIST_STATE = np.dtype([("block", np.int64), ("words", np.int64), ("length", np.int64)])


class Rows(NamedTuple):
    """The arrays of a state; row numbers index the first two."""

    newest: Words  # [row] its newest event time, epoch ms; NO_TIME: there is no such row
    lists: NDArray[Any]  # [row, list] of LIST_STATE: the block, its size, the entries in it
    arena: Words
    free: Words  # [0]: where the unused arena begins; [1 + size]: the chain of free blocks


class Events(NamedTuple):
    """``n`` events as columns; `EntityFold.events` makes them from plain numbers."""

    times: Words  # [n] event times, epoch ms
    hashes: NDArray[np.uint64]  # [n] 64-bit hashes of the event ids
    values: Words  # [n, fields] in units of each field's scale
    valid: NDArray[np.bool_]  # [n, fields] false: null
    out_of_range: int = 0  # values that do not fit their scale, and are nulls here


@kernel
def has_room(plan: Plan, rows: Rows) -> bool:
    return bool(rows.free[0] + plan.headroom <= rows.arena.size)


@kernel
def allocate(rows: Rows, words: I64) -> I64:
    size = block_size(words)
    block = rows.free[1 + size]
    if block >= 0:
        rows.free[1 + size] = rows.arena[block]
        return np.int64(block)
    block = rows.free[0]
    rows.free[0] += words
    return np.int64(block)


@kernel
def release(rows: Rows, block: I64, words: I64) -> None:
    size = block_size(words)
    rows.arena[block] = rows.free[1 + size]
    rows.free[1 + size] = block


@kernel
def block_size(words: I64) -> I64:
    size = 0
    while (1 << size) < words:
        size += 1
    return np.int64(size)


@kernel
def clear(rows: Rows, row: I64) -> None:
    """Make a row one that does not exist, and give its blocks back."""
    rows.newest[row] = NO_TIME
    for number in range(rows.lists.shape[1]):
        state = rows.lists[row, number]
        if state.words > 0:
            release(rows, state.block, state.words)
        state.words = 0
        state.length = 0


@kernel
def grow(plan: Plan, rows: Rows, row: I64, number: I64) -> None:
    """Make place for one more entry: where expired ones lie, or else in a new block."""
    spec, state = plan.lists[number], rows.lists[row, number]
    width, arena = spec.width, rows.arena
    expired = first_live(plan, rows, row, number)
    if expired > 0:
        shift(arena, state.block + expired * width, state.block, (state.length - expired) * width)
        state.length -= expired
        return
    words = max(2 * state.words, spec.first_block)
    block = allocate(rows, words)
    shift(arena, state.block, block, state.length * width)
    if state.words > 0:
        release(rows, state.block, state.words)
    state.block = block
    state.words = words


@kernel
def shift(arena: Words, source: I64, target: I64, words: I64) -> None:
    """Copy words within the arena, overlapping or not."""
    if source > target:
        for i in range(words):
            arena[target + i] = arena[source + i]
    else:
        for i in range(words - 1, -1, -1):
            arena[target + i] = arena[source + i]


@kernel
def pane_of(spec: Any, time: I64) -> I64:
    """Number the pane that holds an instant; a list for all time has the pane 0 only."""
    return np.int64(time // spec.pane_ms if spec.pane_ms > 0 else 0)


@kernel
def oldest_pane(spec: Any, newest: I64) -> I64:
    """Number the oldest pane within reach of the newest event."""
    return np.int64(pane_of(spec, newest) - spec.reach + 1)


@kernel
def first_live(plan: Plan, rows: Rows, row: I64, number: I64) -> I64:
    """Find the first entry that has not expired; those before it wait to be overwritten."""
    spec = plan.lists[number]
    beyond = np.int64(0)
    if spec.kind != ListKind.PANES:
        beyond = np.int64(max(rows.lists[row, number].length - spec.capacity, 0))
        if spec.kind == ListKind.RECENT:
            return beyond
    expired = lower_bound(spec, rows, row, number, oldest_pane(spec, rows.newest[row]))
    return np.int64(max(expired, beyond))


@kernel
def lower_bound(spec: Any, rows: Rows, row: I64, number: I64, key: I64) -> I64:
    """Find the first entry whose first word is not below ``key``."""
    state, arena, width = rows.lists[row, number], rows.arena, spec.width
    if state.length == 0 or arena[state.block + (state.length - 1) * width] < key:
        return np.int64(state.length)  # the usual case: time moves on
    low, high = 0, state.length
    while low < high:
        middle = (low + high) >> 1
        if arena[state.block + middle * width] < key:
            low = middle + 1
        else:
            high = middle
    return np.int64(low)


@kernel
def compare(a: Words, i: I64, b: Words, j: I64, words: I64) -> int:
    """Order two runs of words, as tuples are ordered: -1, 0 or 1."""
    for k in range(words):
        if a[i + k] != b[j + k]:
            return -1 if a[i + k] < b[j + k] else 1
    return 0


@kernel
def clear_entry(plan: Plan, spec: Any, entry: Words) -> None:
    """Write the neutral element of each accumulator."""
    for number in range(spec.first_op, spec.end_op):
        op, offset = plan.ops[number], plan.ops[number].offset
        if op.combine == Combine.ADD128:
            entry[offset] = 0
            entry[offset + 1] = 0
        elif op.combine == Combine.MIN or op.combine == Combine.EARLIEST:
            entry[offset] = LARGEST
        elif op.combine == Combine.MAX or op.combine == Combine.LATEST:
            entry[offset] = SMALLEST
        else:
            entry[offset] = 0
        if op.combine == Combine.EARLIEST or op.combine == Combine.LATEST:
            entry[offset + 1] = 0
            entry[offset + 2] = 0


@kernel
def lift(plan: Plan, spec: Any, source: Source, events: Events, i: I64, entry: Words) -> bool:
    """Write the entry of a list that holds one event, or one label, and nothing else.

    Returns false if it has no place there: a null in a recent list, or the other kind of record.
    """
    time, stamp = events.times[i], np.int64(events.hashes[i])
    is_panes = spec.kind == ListKind.PANES
    if is_panes:
        entry[0] = pane_of(spec, time)
        clear_entry(plan, spec, entry)
    elif spec.kind != ListKind.RECENT:
        return lift_cell(plan, spec, source, events, i, entry)
    elif source == Source.EVENT:
        entry[0] = time
        entry[1] = stamp
    else:
        return False
    for number in range(spec.first_op, spec.end_op):
        op, offset = plan.ops[number], plan.ops[number].offset
        if op.input >= Input.TIME:
            lift_time(op, spec, source, events, i, entry)
            continue
        if op.source != source:
            continue
        if op.input == Input.ONE:
            entry[offset] = 1
            continue
        if not events.valid[i, op.field]:
            if is_panes:
                continue
            return False
        value = events.values[i, op.field]
        if op.input == Input.VALID:
            entry[offset] = 1
        elif op.input == Input.SQUARE:
            entry[offset], entry[offset + 1] = multiply64(value, value)
        elif op.input == Input.STAMPED:
            entry[offset] = time
            entry[offset + 1] = stamp
            entry[offset + 2] = value
        else:
            entry[offset] = value
            if op.combine == Combine.ADD128:
                entry[offset + 1] = value >> 63
    return True


@side_kernel
def lift_time(op: Any, spec: Any, source: Source, events: Events, i: I64, entry: Words) -> None:
    """Write an accumulator of times, or of ages within the pane, that holds one record."""
    if op.input == Input.TIME:
        entry[op.offset] = events.times[i]
        return
    age = events.times[i] - entry[0] * spec.pane_ms
    if op.source != source or (op.input != Input.AGE and not events.valid[i, op.field]):
        return
    if op.input == Input.VALUE_AGE:
        product = multiply64(events.values[i, op.field], age)
        entry[op.offset], entry[op.offset + 1] = product
    else:
        entry[op.offset] = age


@side_kernel
def lift_cell(plan: Plan, spec: Any, source: Source, events: Events, i: I64, entry: Words) -> bool:
    """Write the cell of a sketch that holds one value and nothing else."""
    op = plan.ops[spec.first_op]
    if op.source != source or not events.valid[i, op.field]:
        return False
    value = events.values[i, op.field]
    entry[0] = pane_of(spec, events.times[i])
    if spec.kind == ListKind.REGISTERS:
        entry[1], entry[2] = register_of(value)
    else:
        entry[1], entry[2] = bucket_of(value), 1
    return True


@kernel
def combine(
    op: Any, into: Words, at: I64, words: Words, first: I64, count: I64, stride: I64
) -> None:
    """Combine ``count`` accumulators, ``stride`` words apart, into one."""
    end = first + count * stride
    if op.combine == Combine.ADD:
        for i in range(first, end, stride):
            into[at] += words[i]
    elif op.combine == Combine.ADD128:
        low, high = into[at], into[at + 1]
        for i in range(first, end, stride):
            low, high = add128(low, high, words[i], words[i + 1])
        into[at], into[at + 1] = low, high
    elif op.combine == Combine.MIN:
        for i in range(first, end, stride):
            into[at] = min(into[at], words[i])
    elif op.combine == Combine.MAX:
        for i in range(first, end, stride):
            into[at] = max(into[at], words[i])
    else:
        wanted = -1 if op.combine == Combine.EARLIEST else 1
        for i in range(first, end, stride):
            if compare(words, i, into, at, 3) == wanted:
                for k in range(3):
                    into[at + k] = words[i + k]


@kernel
def insert(
    plan: Plan, rows: Rows, row: I64, number: I64, at: I64, words: Words, first: I64
) -> None:
    """Put an entry before the entry ``at`` of a list."""
    width, state = plan.lists[number].width, rows.lists[row, number]
    if (state.length + 1) * width > state.words:
        before = state.length
        grow(plan, rows, row, number)
        at -= before - state.length  # expired entries have gone from the front
    position = state.block + at * width
    shift(rows.arena, position, position + width, (state.length - at) * width)
    for k in range(width):
        rows.arena[position + k] = words[first + k]
    state.length += 1


@kernel
def absorb(plan: Plan, rows: Rows, row: I64, number: I64, words: Words, first: I64) -> bool:
    """Merge one entry into a list: what folding an event and merging two rows have in common.

    The row's newest event time is up to date already. Returns false beyond the list's reach.
    """
    if plan.lists[number].kind == ListKind.PANES:
        return absorb_pane(plan, rows, row, number, words, first)
    if plan.lists[number].kind == ListKind.RECENT:
        absorb_recent(plan, rows, row, number, words, first)
        return True
    return absorb_cell(plan, rows, row, number, words, first)


@kernel
def absorb_pane(plan: Plan, rows: Rows, row: I64, number: I64, words: Words, first: I64) -> bool:
    spec, state = plan.lists[number], rows.lists[row, number]
    key = words[first]
    if key < oldest_pane(spec, rows.newest[row]):
        return False
    at = lower_bound(spec, rows, row, number, key)
    entry = state.block + at * spec.width
    if at == state.length or rows.arena[entry] != key:
        insert(plan, rows, row, number, at, words, first)
        return True
    for i in range(spec.first_op, spec.end_op):
        op = plan.ops[i]
        combine(op, rows.arena, entry + op.offset, words, first + op.offset, 1, spec.width)
    return True


@side_kernel
def absorb_cell(plan: Plan, rows: Rows, row: I64, number: I64, words: Words, first: I64) -> bool:
    spec, state = plan.lists[number], rows.lists[row, number]
    if words[first] < oldest_pane(spec, rows.newest[row]):
        return False
    low, at = 0, state.length
    while low < at:
        middle = (low + at) >> 1
        if compare(rows.arena, state.block + middle * spec.width, words, first, 2) < 0:
            low = middle + 1
        else:
            at = middle
    entry = state.block + at * spec.width
    if at < state.length and compare(rows.arena, entry, words, first, 2) == 0:
        op = plan.ops[spec.first_op]
        combine(op, rows.arena, entry + op.offset, words, first + op.offset, 1, spec.width)
        return True
    if at <= state.length - spec.capacity:
        return False
    insert(plan, rows, row, number, at, words, first)
    return True


@kernel
def absorb_recent(plan: Plan, rows: Rows, row: I64, number: I64, words: Words, first: I64) -> None:
    """Keep the newest entries, each once."""
    spec, state = plan.lists[number], rows.lists[row, number]
    oldest = first_live(plan, rows, row, number)
    at, order = state.length, 1
    while at > oldest:
        order = compare(words, first, rows.arena, state.block + (at - 1) * spec.width, spec.width)
        if order >= 0:
            break
        at -= 1
    if order == 0 or (at == oldest and state.length - oldest == spec.reach):
        return
    insert(plan, rows, row, number, at, words, first)


@kernel
def fold_record(
    plan: Plan, rows: Rows, row: I64, source: Source, events: Events, i: I64, entry: Words
) -> bool:
    """Fold one event, or a label at its event's time. Returns false if a pane was out of reach."""
    rows.newest[row] = max(rows.newest[row], events.times[i])
    is_in_reach = True
    for number in range(plan.lists.size):
        if lift(plan, plan.lists[number], source, events, i, entry):
            is_in_reach &= absorb(plan, rows, row, number, entry, 0)
    return is_in_reach


@kernel
def merge_row(plan: Plan, rows: Rows, row: I64, other: Rows, other_row: I64) -> None:
    """Fold into a row everything that another one holds."""
    if other.newest[other_row] == NO_TIME:
        return
    rows.newest[row] = max(rows.newest[row], other.newest[other_row])
    for number in range(plan.lists.size):
        state, width = other.lists[other_row, number], plan.lists[number].width
        for i in range(state.length):
            absorb(plan, rows, row, number, other.arena, state.block + i * width)


@kernel
def contains(plan: Plan, rows: Rows, row: I64, stamp: I64) -> bool:
    """Say whether an event id is among the newest ones that the row has folded."""
    state, found = rows.lists[row, 0], False
    for i in range(first_live(plan, rows, row, 0), state.length):
        found |= rows.arena[state.block + 2 * i + 1] == stamp
    return found
