"""A writer as a process of its own, to be killed: arguments are a snapshot's file and settings."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from homeostat.common.pipeline import Snapshot
from homeostat.features.offline.writers import Writers
from homeostat.features.settings import Settings


async def write(snapshot: Snapshot, settings: Settings) -> None:
    writers = Writers(settings, lambda: True)
    writers.follow(snapshot.pipeline.name, snapshot)
    await asyncio.Event().wait()


if __name__ == "__main__":
    _, snapshot_file, settings_file = sys.argv
    asyncio.run(
        write(
            Snapshot.decode(Path(snapshot_file).read_bytes()),
            Settings.model_validate_json(Path(settings_file).read_text()),
        )
    )
