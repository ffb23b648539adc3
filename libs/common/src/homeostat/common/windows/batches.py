"""Kernels over batches: what `EntityFold` calls, one call a batch.

Those that write rows return how many items they did: fewer than all means that the arena is full.
``entry`` is scratch: one entry of the widest list, or the panes of a sketch combined.
"""

import numpy as np
from numpy.typing import NDArray

from homeostat.common.windows.compiled import batch_kernel
from homeostat.common.windows.packing import Bytes, pack_row, unpack_row
from homeostat.common.windows.reading import Statuses, Values, evaluate_row
from homeostat.common.windows.rows import (
    I64,
    Events,
    Rows,
    Words,
    clear,
    contains,
    fold_record,
    has_room,
    merge_row,
)
from homeostat.common.windows.tables import Plan, Source

Numbers = NDArray[np.int32]
Mask = NDArray[np.bool_]


@batch_kernel
def fold_events(
    plan: Plan,
    rows: Rows,
    numbers: Numbers,
    events: Events,
    start: I64,
    values: Values,
    statuses: Statuses,
    beyond_reach: Mask,
    entry: Words,
) -> I64:
    """Fold each event, in order, and evaluate its row at the event's own time."""
    for i in range(start, numbers.size):
        if not has_room(plan, rows):
            return np.int64(i)
        row = numbers[i]
        if row >= 0:
            in_reach = fold_record(plan, rows, row, Source.EVENT, events, i, entry)
            beyond_reach[i] = not in_reach
        evaluate_row(plan, rows, row, events.times[i], entry, values[i], statuses[i])
    return np.int64(numbers.size)


@batch_kernel
def fold_labels(
    plan: Plan,
    rows: Rows,
    numbers: Numbers,
    labels: Events,
    start: I64,
    beyond_reach: Mask,
    entry: Words,
) -> I64:
    for i in range(start, numbers.size):
        if not has_room(plan, rows):
            return np.int64(i)
        if numbers[i] >= 0:
            in_reach = fold_record(plan, rows, numbers[i], Source.LABEL, labels, i, entry)
            beyond_reach[i] = not in_reach
    return np.int64(numbers.size)


@batch_kernel
def evaluate(
    plan: Plan,
    rows: Rows,
    numbers: Numbers,
    at: Words,
    values: Values,
    statuses: Statuses,
    entry: Words,
) -> None:
    for i in range(numbers.size):
        evaluate_row(plan, rows, numbers[i], at[i], entry, values[i], statuses[i])


@batch_kernel
def merge(
    plan: Plan, rows: Rows, numbers: Numbers, other: Rows, other_numbers: Numbers, start: I64
) -> I64:
    for i in range(start, numbers.size):
        if not has_room(plan, rows):
            return np.int64(i)
        merge_row(plan, rows, numbers[i], other, other_numbers[i])
    return np.int64(numbers.size)


@batch_kernel
def clear_rows(rows: Rows, numbers: Numbers) -> None:
    for number in numbers:
        clear(rows, number)


@batch_kernel
def contain(
    plan: Plan, rows: Rows, numbers: Numbers, hashes: NDArray[np.uint64], found: Mask
) -> None:
    for i in range(numbers.size):
        found[i] = numbers[i] >= 0 and contains(plan, rows, numbers[i], np.int64(hashes[i]))


@batch_kernel
def count_words(plan: Plan, rows: Rows, numbers: Numbers) -> I64:
    """Count the words of rows, from which a bound of their packed bytes follows."""
    words = np.int64(0)
    for row in numbers:
        words += 1
        for number in range(plan.lists.size):
            words += 1 + rows.lists[row, number].length * plan.lists[number].width
    return words


@batch_kernel
def pack(plan: Plan, rows: Rows, numbers: Numbers, header: Bytes, into: Bytes, ends: Words) -> None:
    """Write rows one after the other, and where each of them ends."""
    at: I64 = np.int64(0)
    for i in range(numbers.size):
        at = pack_row(plan, rows, numbers[i], header, into, at)
        ends[i] = at


@batch_kernel
def unpack(plan: Plan, rows: Rows, numbers: Numbers, packed: Bytes, ends: Words, start: I64) -> I64:
    """Replace rows; a damaged one is reported as -1 minus its number."""
    at = np.int64(0) if start == 0 else ends[start - 1]
    for i in range(start, numbers.size):
        if not has_room(plan, rows):
            return np.int64(i)
        if not unpack_row(plan, rows, numbers[i], packed, at, ends[i]):
            return np.int64(-1 - i)
        at = ends[i]
    return np.int64(numbers.size)


@batch_kernel
def read(
    plan: Plan,
    rows: Rows,
    packed: Bytes,
    ends: Words,
    at: Words,
    own: Events,
    is_merged: Mask,
    values: Values,
    statuses: Statuses,
    entry: Words,
) -> I64:
    """Evaluate packed rows, one after the other in the scratch row 0, each with its own event.

    An empty run of bytes is an entity that the store does not know. ``is_merged[i]`` comes in as
    whether to merge event i, and goes out as whether it was: not if the row holds it already.
    """
    start = np.int64(0)
    for i in range(at.size):
        clear(rows, 0)
        if ends[i] > start and not unpack_row(plan, rows, 0, packed, start, ends[i]):
            return np.int64(-1 - i)
        start = ends[i]
        if is_merged[i]:
            is_merged[i] = not contains(plan, rows, 0, np.int64(own.hashes[i]))
            if is_merged[i]:
                fold_record(plan, rows, 0, Source.EVENT, own, i, entry)
        evaluate_row(plan, rows, 0, at[i], entry, values[i], statuses[i])
    return np.int64(at.size)
