"""Rows as bytes: what the changelog and the online store hold.

::

    layout version   2 bytes, little-endian
    definition       8 bytes: the head of the definition hash
    newest time      number
    each list        number of entries, then entry by entry:
                       first word   number: the distance from the entry before (in the first entry
                                    from the newest event's time or pane)
                       id hashes    8 bytes, little-endian
                       other words  numbers

A number is a zigzag LEB128 varint, 1 to 10 bytes: most words of a row are small. Expired panes are
left out, so that equal states have equal bytes. Their form is checked when they are read: a row
that no fold could have written is refused, and nothing beyond it is touched. A flipped bit that
leaves another well-formed row is not seen.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from homeostat.common.windows.compiled import kernel
from homeostat.common.windows.rows import (
    I64,
    NO_TIME,
    Rows,
    allocate,
    block_size,
    clear,
    compare,
    first_live,
    oldest_pane,
    pane_of,
)
from homeostat.common.windows.sketches import is_cell
from homeostat.common.windows.tables import CELLS, ListKind, Plan

HEADER_BYTES = 10
MAX_VARINT_BYTES = 10
HASH_BYTES = 8

Bytes = NDArray[np.uint8]


def bytes_bound(plan: Plan) -> int:
    """Bound the bytes of a packed row, every list at its capacity."""
    numbers = 1 + plan.lists.size  # the newest time, and the number of each list's entries
    total = HEADER_BYTES + MAX_VARINT_BYTES * numbers
    for spec, is_hash in zip(plan.lists, plan.is_hash, strict=True):
        total += int(spec["capacity"]) * _entry_bytes_bound(spec, int(is_hash.sum()))
        if spec["kind"] in CELLS:
            total += int(spec["reach"]) // 32  # the panes that their distances add up to, twice
    return total


def _entry_bytes_bound(spec: Any, hashes: int) -> int:
    """Bound the bytes of an entry; of a sketch's a distance below 64 panes takes only one."""
    if spec["kind"] == ListKind.REGISTERS:
        return 1 + 2 + 1
    if spec["kind"] == ListKind.BUCKETS:
        return 1 + 2 + MAX_VARINT_BYTES
    return HASH_BYTES * hashes + MAX_VARINT_BYTES * (int(spec["width"]) - hashes)


@kernel
def pack_row(plan: Plan, rows: Rows, row: I64, header: Bytes, into: Bytes, at: I64) -> I64:
    """Write a row from the byte ``at`` on, and return where it ends."""
    for byte in header:
        into[at] = byte
        at += 1
    newest = rows.newest[row]
    at = put_number(into, at, newest)
    for number in range(plan.lists.size):
        spec, state = plan.lists[number], rows.lists[row, number]
        first = first_live(plan, rows, row, number)
        at = put_number(into, at, state.length - first)
        before = newest if spec.kind == ListKind.RECENT else pane_of(spec, newest)
        for entry in range(first, state.length):
            position = state.block + entry * spec.width
            at = put_number(into, at, rows.arena[position] - before)
            before = rows.arena[position]
            for word in range(1, spec.width):
                value = rows.arena[position + word]
                if plan.is_hash[number, word]:
                    at = put_hash(into, at, value)
                else:
                    at = put_number(into, at, value)
    return at


@kernel
def put_number(into: Bytes, at: I64, value: I64) -> I64:
    rest = np.uint64((value << 1) ^ (value >> 63))
    while rest >= np.uint64(128):
        into[at] = np.uint8(rest & np.uint64(127)) | np.uint8(128)
        rest >>= np.uint64(7)
        at += 1
    into[at] = np.uint8(rest)
    return at + 1


@kernel
def put_hash(into: Bytes, at: I64, value: I64) -> I64:
    for i in range(HASH_BYTES):
        into[at + i] = np.uint8((value >> (8 * i)) & 255)
    return at + HASH_BYTES


@kernel
def take_number(packed: Bytes, at: I64, end: I64) -> tuple[I64, I64]:
    """Read a number and where it ends: -1 if it does not end before ``end``."""
    rest = np.uint64(0)
    for i in range(MAX_VARINT_BYTES):
        if at + i >= end:
            break
        byte = packed[at + i]
        rest |= np.uint64(byte & 127) << np.uint64(7 * i)
        if byte < 128:
            value = np.int64(rest >> np.uint64(1)) ^ -np.int64(rest & np.uint64(1))
            return value, at + i + 1
    return np.int64(0), np.int64(-1)


@kernel
def take_hash(packed: Bytes, at: I64, end: I64) -> tuple[I64, I64]:
    """Read a hash and where it ends: -1 if it does not end before ``end``."""
    value = np.int64(0)
    if at + HASH_BYTES > end:
        return value, np.int64(-1)
    for i in range(HASH_BYTES):
        value |= np.int64(packed[at + i]) << (8 * i)
    return value, at + HASH_BYTES


@kernel
def unpack_row(plan: Plan, rows: Rows, row: I64, packed: Bytes, at: I64, end: I64) -> bool:
    """Replace a row by what the bytes say. Returns false, and leaves no row, if damaged."""
    clear(rows, row)
    newest, at = take_number(packed, at + HEADER_BYTES, end)
    if at < 0 or newest == NO_TIME:
        return False
    rows.newest[row] = newest
    for number in range(plan.lists.size):
        at = unpack_list(plan, rows, row, number, packed, at, end)
        if at < 0:
            break
    if at != end:
        clear(rows, row)
        return False
    return True


@kernel
def unpack_list(
    plan: Plan, rows: Rows, row: I64, number: I64, packed: Bytes, at: I64, end: I64
) -> I64:
    """Read one list and return where it ends: -1 if it is damaged."""
    damaged = np.int64(-1)
    spec, state, arena = plan.lists[number], rows.lists[row, number], rows.arena
    is_panes, width, newest = spec.kind != ListKind.RECENT, spec.width, rows.newest[row]
    is_sketch = is_panes and spec.kind != ListKind.PANES
    length, at = take_number(packed, at, end)
    if at < 0 or length < 0 or length > spec.capacity:
        return damaged
    if length == 0:
        return at
    words = max(1 << block_size(length * width), spec.first_block)
    state.block = allocate(rows, words)
    state.words = words
    before = pane_of(spec, newest) if is_panes else newest
    for entry in range(length):
        position = state.block + entry * width
        step, at = take_number(packed, at, end)
        arena[position] = before + step
        before = arena[position]
        for word in range(1, width):
            if at < 0:
                return damaged
            if plan.is_hash[number, word]:
                arena[position + word], at = take_hash(packed, at, end)
            else:
                arena[position + word], at = take_number(packed, at, end)
        if at < 0:
            return damaged
        ordered = spec.key_words if is_panes else width
        if entry > 0 and compare(arena, position - width, arena, position, ordered) >= 0:
            return damaged
        if is_sketch and not is_cell(spec, arena[position + 1], arena[position + 2]):
            return damaged
    state.length = length
    first = arena[state.block]
    if is_panes and (first < oldest_pane(spec, newest) or before > pane_of(spec, newest)):
        return damaged
    return at
