"""Durations as people write them in pipeline files: ``30m``, ``7d``, ``250ms``."""

import re
from datetime import timedelta

_MILLISECONDS = {
    "w": 604_800_000,
    "d": 86_400_000,
    "h": 3_600_000,
    "m": 60_000,
    "s": 1_000,
    "ms": 1,
}
_PATTERN = re.compile(r"(\d{1,12})(ms|s|m|h|d|w)")


def parse_duration(text: str) -> timedelta:
    """Read one number and one unit: ``ms``, ``s``, ``m``, ``h``, ``d`` or ``w``.

    >>> parse_duration("30m")
    datetime.timedelta(seconds=1800)
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{text!r} is not a duration: write a whole number and a unit "
            "(ms, s, m, h, d or w), for example 30m or 7d"
        )
    number, unit = match.groups()
    try:
        return timedelta(milliseconds=int(number) * _MILLISECONDS[unit])
    except OverflowError:
        raise ValueError(f"{text!r} is too long: a duration ends at 999999999d") from None


def format_duration(duration: timedelta) -> str:
    """Write a duration in the largest unit that keeps it whole; the inverse of `parse_duration`.

    >>> format_duration(timedelta(minutes=90))
    '90m'
    """
    milliseconds = whole_milliseconds(duration)
    if milliseconds == 0:
        return "0s"
    unit = next(unit for unit, size in _MILLISECONDS.items() if milliseconds % size == 0)
    return f"{milliseconds // _MILLISECONDS[unit]}{unit}"


def whole_milliseconds(duration: timedelta) -> int:
    """Count a duration's milliseconds, exactly: a part of a millisecond is refused, not rounded."""
    milliseconds, rest = divmod(duration, timedelta(milliseconds=1))
    if rest or milliseconds < 0:
        raise ValueError(f"{duration} is not a whole number of milliseconds from zero up")
    return milliseconds
