"""Instants as people and machines write them, as epoch milliseconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime

import numpy as np

MIN_MILLIS = 0
MAX_MILLIS = 253_402_300_799_999  # the year 9999
FIRST_MILLIS = 100_000_000_000  # a number below it counts seconds


def parse_time(value: int | float | str) -> int:
    """Epoch milliseconds of an RFC 3339 text, epoch seconds or epoch milliseconds.

    The unit of a number is told by its size, which is safe between 1973 and 5138.

    >>> parse_time("2018-04-01T00:00:31Z"), parse_time(1522540831), parse_time(1522540831000)
    (1522540831000, 1522540831000, 1522540831000)
    """
    if isinstance(value, str):
        try:
            instant = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("not an RFC 3339 time such as 2018-04-01T00:00:31Z") from None
        if instant.tzinfo is None:
            raise ValueError("the time has no zone; append Z for UTC")
        millis = round(instant.timestamp() * 1000)
    elif isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("not a time")
    elif abs(value) > MAX_MILLIS:  # before any arithmetic: it may be too long for a float
        millis = -1
    elif value < FIRST_MILLIS:
        millis = round(value * 1000)
    else:
        millis = round(value)
    if not MIN_MILLIS <= millis <= MAX_MILLIS:
        raise ValueError("outside the years 1970 to 9999: is it in microseconds?")
    return millis


def parse_times(values: Sequence[int | float | str]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """`parse_time` of a column.

    Raises:
        ValueError: one of them is no time.

    >>> parse_times([1522540831, 1522540831000]).tolist()
    [1522540831000, 1522540831000]
    """
    if set(map(type, values)) == {int}:
        with suppress(OverflowError):
            numbers = np.array(values, np.int64)
            if numbers.min() >= MIN_MILLIS and numbers.max() <= MAX_MILLIS:
                return np.where(numbers < FIRST_MILLIS, numbers * 1000, numbers)
    return np.array([parse_time(value) for value in values], np.int64)
