"""Kafka's jars: a pinned list, fetched once per user, refused when a byte differs."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from homeostat.cli.errors import CliError
from homeostat.cli.stack.home import user_cache

KAFKA_VERSION = "4.3.1"
PARALLEL_FETCHES = 8
ROOTS = (f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}", "org.slf4j:slf4j-simple:1.7.36")

Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all) after each jar."""


class ChecksumMismatch(CliError):
    """A jar is not the one that was pinned: it is never put on a class path."""


@dataclass(frozen=True)
class Jar:
    """One pinned artifact."""

    group: str
    artifact: str
    version: str
    sha256: str
    size_bytes: int

    @property
    def file_name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


def pinned() -> list[Jar]:
    """The list in ``jars.txt``."""
    text = resources.files(__package__).joinpath("jars.txt").read_text(encoding="utf-8")
    return [_parse(line) for line in text.splitlines() if line and not line.startswith("#")]


def jar_folder() -> Path:
    return user_cache() / f"kafka-{KAFKA_VERSION}" / "jars"


def class_path(progress: Progress | None = None) -> list[Path]:
    """Kafka's class path, fetching what is missing.

    ``HOMEOSTAT_KAFKA_HOME`` names an unpacked Kafka instead, for networks without a registry;
    its files are the operator's choice and are taken as they are.
    """
    if own := os.environ.get("HOMEOSTAT_KAFKA_HOME"):
        return _unpacked(Path(own))
    folder = jar_folder()
    jars = pinned()
    fetch([jar for jar in jars if not (folder / jar.file_name).exists()], folder, progress)
    for jar in jars:
        verify(folder / jar.file_name, jar)
    return [folder / jar.file_name for jar in jars]


def is_fetched() -> bool:
    """Whether a start needs no network."""
    if os.environ.get("HOMEOSTAT_KAFKA_HOME"):
        return True
    return all((jar_folder() / jar.file_name).exists() for jar in pinned())


def fetch(missing: list[Jar], folder: Path, progress: Progress | None = None) -> None:
    """Fetch ``missing`` into ``folder``; a jar appears there whole and verified, or not at all."""
    if not missing:
        return
    from jgo.maven import MavenContext

    staging = folder.with_name(f"fetching-{os.getpid()}")
    folder.mkdir(parents=True, exist_ok=True)
    maven = MavenContext(repo_cache=staging, timeout=60)
    total = sum(jar.size_bytes for jar in missing)

    def fetch_one(jar: Jar) -> int:
        component = maven.project(jar.group, jar.artifact).at_version(jar.version)
        fetched = Path(component.artifact().resolve())
        verify(fetched, jar)
        fetched.replace(folder / jar.file_name)
        return jar.size_bytes

    try:
        with ThreadPoolExecutor(PARALLEL_FETCHES) as pool:
            done = 0
            for size_bytes in pool.map(fetch_one, missing):
                done += size_bytes
                if progress is not None:
                    progress(done, total)
    except (OSError, RuntimeError) as error:
        raise CliError(
            f"Kafka {KAFKA_VERSION} could not be fetched: {error}",
            fix="check the network, or unpack Kafka and set HOMEOSTAT_KAFKA_HOME to its folder",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def verify(path: Path, jar: Jar) -> None:
    """Refuse ``path`` unless it is exactly the pinned ``jar``."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != jar.sha256:
        raise ChecksumMismatch(
            f"{path} is not the pinned {jar.file_name}: its SHA-256 is {actual}, not {jar.sha256}",
            fix=f"delete {path} and try again; if it stays so, the registry serves another file",
        )


def _parse(line: str) -> Jar:
    coordinates, sha256, size_bytes = line.split()
    group, artifact, version = coordinates.split(":")
    return Jar(group, artifact, version, sha256, int(size_bytes))


def _unpacked(home: Path) -> list[Path]:
    folder = home / "libs" if (home / "libs").is_dir() else home
    found = sorted(folder.glob("*.jar"))
    if not any(path.name.startswith("kafka_2.13-") for path in found):
        raise CliError(
            f"HOMEOSTAT_KAFKA_HOME={home} holds no Kafka: kafka_2.13-*.jar is missing",
            fix="point it at the unpacked distribution, the folder with bin/ and libs/",
        )
    return found


def _resolved_pins() -> Iterator[str]:
    """The lines of ``jars.txt`` as the registry has them today, for the maintainer to review."""
    from jgo.maven import MavenContext

    maven = MavenContext()
    inputs = [maven.create_dependency(root) for root in ROOTS]
    direct, transitive = maven.resolver.resolve(inputs)
    runtime = [found for found in transitive if found.scope in {"compile", "runtime"}]
    for found in sorted([*direct, *runtime], key=str):
        jar = found.artifact.resolve()
        digest = hashlib.sha256(jar.read_bytes()).hexdigest()
        yield f"{found.groupId}:{found.artifactId}:{found.version} {digest} {jar.stat().st_size}"


if __name__ == "__main__":
    print("\n".join(_resolved_pins()))  # noqa: T201 — its output is the new pin file
