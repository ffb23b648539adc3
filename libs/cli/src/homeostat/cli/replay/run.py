"""One replay from a file to its report."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from homeostat.cli.addresses import Addresses
from homeostat.cli.errors import CliError
from homeostat.cli.replay.drain import Drain
from homeostat.cli.replay.player import Doors, Player, Report
from homeostat.common.pipeline import Pipeline
from homeostat.common.recording import FileSource, Slice

# Whose positions and decisions a replay waits for; ingest answers when the broker has.
WATCHED = ("features", "inference", "drift", "trainer", "judge", "router")
TELL_EVERY_SECONDS = 5.0


async def replay(
    file: Path,
    pipeline: Pipeline,
    *,
    addresses: Addresses,
    speed: float,
    step: timedelta,
    start: int | None = None,
    end: int | None = None,
    predict: bool,
    tell: Callable[[str], None] = lambda _line: None,
) -> Report:
    """Replay a file through a running system, asking for predictions as callers would or not.

    A slice that is predicted is no longer than the pipeline's lateness: features are read as of
    each event's time, and state looks back no further than that.

    Raises:
        CliError: the stack keeps no replay token, so nobody may set a pipeline's clock.
    """
    if not addresses.replay_token:
        raise CliError("there is no replay token", fix="set INGEST_REPLAY_TOKEN, or homeostat up")
    source = FileSource(file, pipeline)
    last_told = 0.0

    def on_slice(part: Slice, report: Report) -> None:
        nonlocal last_told
        if report.seconds - last_told >= TELL_EVERY_SECONDS:
            last_told = report.seconds
            clock = datetime.fromtimestamp(part.end / 1000, UTC)
            tell(f"{clock:%Y-%m-%d %H:%M}  {report.events:,} events, {report.labels:,} labels")

    services = {name: addresses.urls[name] for name in WATCHED}
    async with Drain(pipeline.name, bootstrap_servers=addresses.kafka, services=services) as drain:
        player = Player(
            Doors(
                pipeline.name,
                addresses.urls["ingest"],
                addresses.replay_token,
                addresses.urls["router"] if predict else None,
            ),
            drain,
            rest_every=_millis(step),
            speed=speed,
        )
        tick = min(step, pipeline.lateness) if predict else step
        return await player.play(
            source.slices(_millis(tick), start=start, end=end), on_slice=on_slice
        )


def _millis(duration: timedelta) -> int:
    return round(duration.total_seconds() * 1000)
