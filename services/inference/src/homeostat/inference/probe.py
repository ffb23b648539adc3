"""Tries a model file in a process of its own: a hostile file may crash or hang it, and only it.

The child reads the announcement from standard input, and writes why the file is refused, or
nothing. The server runs it before it lets the same bytes near its own process.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import msgspec

from homeostat.common.errors import HomeostatError
from homeostat.common.schemas.models import ModelVersion
from homeostat.inference.scorer import ModelRefused, load

REFUSED = 3
# XGBoost imports scikit-learn where there is one, which takes three times as long as the rest of
# the child's life and is of no use in there. To Python, a module that is ``None`` is not there.
CHILD = (
    "import sys; sys.modules['sklearn'] = None; "
    "from homeostat.inference import probe; sys.exit(probe.main())"
)


async def probe(version: ModelVersion, path: Path, *, patience: timedelta) -> None:
    """Load a file and check its golden vectors in a child process.

    Raises:
        ModelRefused: the child refused the file, crashed, or did not end in time.
    """
    child = await asyncio.to_thread(_spawn, path)
    try:
        async with asyncio.timeout(patience.total_seconds()):
            said, _ = await asyncio.to_thread(child.communicate, msgspec.json.encode(version))
    except TimeoutError as error:
        raise ModelRefused(
            f"loading did not end within {patience.total_seconds():g} s in a child process"
        ) from error
    finally:
        child.kill()  # also ends the thread that reads from it
    if child.returncode == REFUSED:
        raise ModelRefused(said.decode(errors="replace").strip())
    if child.returncode != 0:
        raise ModelRefused(f"loading ended the child process ({_ending(child.returncode)})")


def _spawn(path: Path) -> subprocess.Popen[bytes]:
    # Not asyncio's: on uvloop that forks, and a fork runs gRPC's handlers, which may never return.
    return subprocess.Popen(
        [sys.executable, "-I", "-c", CHILD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # No secret of the server's environment is anyone's business in there.
        env={"PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1"},
    )


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


def main() -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    version = msgspec.json.decode(sys.stdin.buffer.read(), type=ModelVersion)
    try:
        load(version, Path(sys.argv[1]).read_bytes())
    except HomeostatError as error:
        sys.stdout.write(error.detail)
        return REFUSED
    return 0
