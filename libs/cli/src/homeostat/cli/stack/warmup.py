"""Make Kafka's class-data archive: `python -m homeostat.cli.stack.warmup`.

A scratch broker is started to see which classes it loads, and the JVM writes those, parsed, to a
file that every later broker maps into memory: its start takes half the time. Done once per Java
build and class path, at idle priority, after a stack is up; about 15 seconds of one core.
"""

import asyncio
import fcntl
import os
import tempfile
from pathlib import Path

from homeostat.cli.stack import archive, jars, java, ports
from homeostat.cli.stack.java import Java
from homeostat.cli.stack.keeper import Keeper
from homeostat.cli.stack.program import run
from homeostat.cli.stack.servers import kafka

PATIENCE_SECONDS = 120.0


def is_due(runtime: Java, class_path: list[Path]) -> bool:
    return not archive.path(runtime, class_path).exists()


def build(runtime: Java, class_path: list[Path]) -> None:
    """Make the archive; it appears whole or not at all."""
    archived = archive.path(runtime, class_path)
    draft = archived.with_suffix(".new")
    with tempfile.TemporaryDirectory(prefix="homeostat-warmup-") as scratch:
        classes = Path(scratch) / "classes"
        asyncio.run(_record_loaded_classes(runtime, class_path, Path(scratch), classes))
        options = (
            "-Xshare:dump",
            f"-XX:SharedClassListFile={classes}",
            f"-XX:SharedArchiveFile={draft}",
        )
        run(kafka.command(runtime, class_path, options=options))
    draft.replace(archived)


async def _record_loaded_classes(
    runtime: Java, class_path: list[Path], folder: Path, classes: Path
) -> None:
    chosen = ports.choose({"broker": 0, "controller": 0}, ports.PortPolicy.FREE)
    recording = (f"-XX:DumpLoadedClassList={classes}",)
    scratch = kafka.program(
        folder,
        port=chosen["broker"],
        controller_port=chosen["controller"],
        start=kafka.command(runtime, class_path, options=recording),
    )
    broker = Keeper(scratch, log=folder / "kafka.log", env=os.environ, changed=lambda: None)
    broker.start()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await broker.up.wait()
    finally:
        await broker.stop()


def main() -> None:
    runtime = java.find()
    class_path = jars.class_path()
    archived = archive.path(runtime, class_path)
    archived.parent.mkdir(parents=True, exist_ok=True)
    os.nice(19)
    with archived.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_due(runtime, class_path):
            build(runtime, class_path)


if __name__ == "__main__":
    main()
