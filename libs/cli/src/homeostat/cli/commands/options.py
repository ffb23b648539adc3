"""What `replay` and `backtest` ask alike: which part of a file, and in what steps."""

from datetime import datetime, timedelta
from typing import Annotated

import typer

Since = Annotated[datetime | None, typer.Option("--from", help="Leave out events before (UTC).")]
Until = Annotated[datetime | None, typer.Option(help="Leave out events from then on (UTC).")]


def instant(value: datetime | None) -> int | None:
    """Epoch milliseconds of what was typed without a zone."""
    from datetime import UTC

    from homeostat.common.clock import to_millis

    return None if value is None else to_millis(value.replace(tzinfo=UTC))


def length(text: str, *, option: str) -> timedelta:
    """A duration of some length.

    >>> length("6h", option="--step")
    datetime.timedelta(seconds=21600)
    """
    from homeostat.common.durations import parse_duration

    try:
        duration = parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from error
    if not duration:
        raise typer.BadParameter(f"{option}: {text!r} is no length of time")
    return duration
