"""Exact arithmetic on 128-bit two's-complement integers, as pairs of int64: low limb, high limb.

Sums never round and never saturate, so they are the same in any order. One value is at most 2^53
in magnitude: 2^74 values can be summed, and the squares of 2^21 of the largest ones (of 2^61 values
below 2^33) before anything could wrap.
"""

import numpy as np

from homeostat.common.windows.compiled import kernel

I64 = np.int64 | int
F64 = np.float64 | float
Limbs = tuple[I64, I64]


@kernel
def add128(low: I64, high: I64, other_low: I64, other_high: I64) -> Limbs:
    total = np.uint64(low) + np.uint64(other_low)
    carry = np.int64(total < np.uint64(low))
    return np.int64(total), high + other_high + carry


@kernel
def subtract128(low: I64, high: I64, other_low: I64, other_high: I64) -> Limbs:
    borrow = np.int64(np.uint64(low) < np.uint64(other_low))
    return np.int64(np.uint64(low) - np.uint64(other_low)), high - other_high - borrow


@kernel
def multiply64(a: I64, b: I64) -> Limbs:
    """Multiply two int64 into 128 bits."""
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    x, y = np.uint64(a), np.uint64(b)
    x0, x1, y0, y1 = x & mask, x >> half, y & mask, y >> half
    low = x0 * y0
    middle = x1 * y0 + (low >> half)
    cross = x0 * y1 + (middle & mask)
    high = np.int64(x1 * y1 + (middle >> half) + (cross >> half))
    # Read as unsigned, a negative factor is 2^64 too large: the other one was added that often.
    if a < 0:
        high -= b
    if b < 0:
        high -= a
    return np.int64((cross << half) | (low & mask)), high


@kernel
def to_float(low: I64, high: I64) -> F64:
    """Convert to the nearest float64; beyond 64 bits, to within two units in the last place."""
    if high == low >> np.int64(63):
        return np.float64(low)
    return np.float64(high) * 18446744073709551616.0 + np.float64(np.uint64(low))


@kernel
def squared_deviations(count: I64, low: I64, high: I64, square_low: I64, square_high: I64) -> F64:
    """Compute ``sum((x - mean)^2)`` of ``count`` integers from their sum and sum of squares.

    Both are first moved, exactly, to an integer next to the mean. What is left are small numbers,
    and nothing cancels however far from zero the values lie.
    """
    shift = np.int64(np.rint(to_float(low, high) / np.float64(count)))
    # With S, Q the sums: sum(x - m) = S - n m =: R, and sum((x - m)^2) = Q - m (S + R).
    rest_low, rest_high = subtract128(low, high, *multiply64(count, shift))
    both_low, both_high = add128(low, high, rest_low, rest_high)
    product_low, product_high = multiply64(both_low, shift)
    # The low limb was taken as signed: give back the 2^64, and add the high limb's share.
    product_high += shift * (both_high + np.int64(both_low < 0))
    around_low, around_high = subtract128(square_low, square_high, product_low, product_high)
    moved = to_float(rest_low, rest_high)
    return max(to_float(around_low, around_high) - moved * moved / np.float64(count), 0.0)
