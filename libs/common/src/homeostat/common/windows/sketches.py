"""Kernels of the sketches: which cell of a pane a value falls into, and what the cells say.

A sketch is a list of cells, of which only those that hold something are kept. Its cells are
integers combined by a commutative operation, so that a sketch is a function of the set of values:

- *distinct* keeps HyperLogLog registers: the largest rank of the hashes of each register. The
  estimate is Ertl's (New cardinality estimation algorithms for HyperLogLog sketches, 2017,
  algorithm 6), which needs no tables and no other formula for small counts.
- *quantile* keeps counts of buckets of nearly logarithmic width: 64 equal ones an octave, as in
  DDSketch with linear interpolation (Masson et al., VLDB 2019), but found in integers.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homeostat.common.windows.compiled import kernel, side_kernel
from homeostat.common.windows.tables import (
    BUCKETS_PER_OCTAVE,
    LARGEST_BUCKET,
    LARGEST_RANK,
    REGISTER_BITS,
    REGISTERS,
    ListKind,
)

I64 = np.int64 | int
Words = NDArray[np.int64]

LOWEST, HIGHEST, TOTAL, COUNTS = 0, 1, 2, 3 + LARGEST_BUCKET  # where `quantile` looks in scratch


@kernel
def mix(word: I64) -> np.uint64:
    """Spread the bits of a word, one to one (the finalizer of SplitMix64)."""
    z = np.uint64(word) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.uint64(z ^ (z >> np.uint64(31)))


@side_kernel
def register_of(word: I64) -> tuple[I64, I64]:
    """Find the register of a value, and its rank: one more than the zeros that lead the rest."""
    bits = mix(word)
    rest, rank = bits << np.uint64(REGISTER_BITS), 1
    while rank < LARGEST_RANK and np.int64(rest) >= 0:
        rest <<= np.uint64(1)
        rank += 1
    return np.int64(bits >> np.uint64(64 - REGISTER_BITS)), np.int64(rank)


@side_kernel
def bucket_of(units: I64) -> I64:
    """Number the bucket of a value; below 128 units each value has its own."""
    magnitude: I64 = -units if units < 0 else units
    octave = 0
    while magnitude >> octave >= 2 * BUCKETS_PER_OCTAVE:
        octave += 1
    bucket = octave * BUCKETS_PER_OCTAVE + (magnitude >> octave)
    return np.int64(-bucket if units < 0 else bucket)


@kernel
def middle_of(bucket: I64) -> float:
    """Give the units in the middle of a bucket, at most 1/128 away from any value in it."""
    magnitude: I64 = -bucket if bucket < 0 else bucket
    octave = max(magnitude // BUCKETS_PER_OCTAVE - 1, 0)
    lowest = (magnitude - octave * BUCKETS_PER_OCTAVE) << octave
    middle = lowest + ((1 << octave) - 1) / 2.0
    return -middle if bucket < 0 else middle


@side_kernel
def is_cell(spec: Any, cell: I64, value: I64) -> bool:
    """Say whether a sketch can hold a cell, which packed bytes may only claim."""
    if spec.kind == ListKind.REGISTERS:
        return bool(0 <= cell < REGISTERS and 1 <= value <= LARGEST_RANK)
    return bool(-LARGEST_BUCKET <= cell <= LARGEST_BUCKET and value >= 1)


@side_kernel
def gather_registers(arena: Words, first: I64, count: I64, scratch: Words) -> None:
    """Count in ``scratch[REGISTERS + rank]`` the registers of each rank, over all panes."""
    scratch[: REGISTERS + LARGEST_RANK + 1] = 0
    scratch[REGISTERS] = REGISTERS
    for i in range(first, first + 3 * count, 3):
        held, rank = scratch[arena[i + 1]], arena[i + 2]
        if rank > held:
            scratch[REGISTERS + held] -= 1
            scratch[REGISTERS + rank] += 1
            scratch[arena[i + 1]] = rank


@side_kernel
def distinct(scratch: Words) -> float:
    """Estimate the number of distinct values, to the nearest whole one."""
    empty, full = scratch[REGISTERS], scratch[REGISTERS + LARGEST_RANK]
    if empty == REGISTERS:
        return 0.0
    z = REGISTERS * full_share(1.0 - full / REGISTERS)
    for rank in range(LARGEST_RANK - 1, 0, -1):
        z = 0.5 * (z + scratch[REGISTERS + rank])
    z += REGISTERS * empty_share(empty / REGISTERS)
    return float(np.rint(REGISTERS * REGISTERS / (2.0 * math.log(2.0)) / z))


@kernel
def empty_share(x: float) -> float:
    """Ertl's sigma: ``x + sum(x^(2^k) * 2^(k - 1))`` over k from 1."""
    y, z, before = 1.0, x, -1.0
    while z != before:
        x *= x
        before = z
        z += x * y
        y += y
    return z


@kernel
def full_share(x: float) -> float:
    """Ertl's tau: ``(1 - x - sum((1 - x^(2^-k))^2 * 2^-k)) / 3`` over k from 1."""
    if x <= 0.0 or x >= 1.0:
        return 0.0
    y, z, before = 1.0, 1.0 - x, -1.0
    while z != before:
        x = math.sqrt(x)
        before = z
        y *= 0.5
        z -= (1.0 - x) * (1.0 - x) * y
    return z / 3.0


@side_kernel
def gather_buckets(arena: Words, first: I64, count: I64, scratch: Words) -> None:
    """Add up each bucket over all panes: ``scratch[COUNTS + bucket]``, from lowest to highest."""
    lowest, highest, total = LARGEST_BUCKET, -LARGEST_BUCKET, 0
    for i in range(first, first + 3 * count, 3):
        lowest, highest = min(lowest, arena[i + 1]), max(highest, arena[i + 1])
        total += arena[i + 2]
    scratch[LOWEST], scratch[HIGHEST], scratch[TOTAL] = lowest, highest, total
    for bucket in range(lowest, highest + 1):
        scratch[COUNTS + bucket] = 0
    for i in range(first, first + 3 * count, 3):
        scratch[COUNTS + arena[i + 1]] += arena[i + 2]


@side_kernel
def quantile(scratch: Words, q: float) -> float:
    """Find the units of the value of which a share ``q`` of the others lies below."""
    bucket = scratch[LOWEST]
    below = math.floor(q * (scratch[TOTAL] - 1)) - scratch[COUNTS + bucket]
    while below >= 0 and bucket < scratch[HIGHEST]:
        bucket += 1
        below -= scratch[COUNTS + bucket]
    return middle_of(bucket)
