"""Where Kafka's class-data archive lies; ``warmup`` makes it.

A JVM refuses an archive made by another build or for other jars, so both are part of the name.
"""

import hashlib
from pathlib import Path

from homeostat.cli.stack.home import user_cache
from homeostat.cli.stack.java import Java


def path(java: Java, class_path: list[Path]) -> Path:
    identity = hashlib.sha256(f"{java.executable} {java.version}".encode())
    for jar in class_path:
        status = jar.stat()
        identity.update(f"{jar} {status.st_size} {status.st_mtime_ns}".encode())
    return user_cache() / "class-archives" / f"kafka-{identity.hexdigest()[:16]}.jsa"


def options(java: Java, class_path: list[Path]) -> tuple[str, ...]:
    """The JVM options that use the archive, none before there is one."""
    archived = path(java, class_path)
    return (f"-XX:SharedArchiveFile={archived}", "-Xshare:auto") if archived.exists() else ()
