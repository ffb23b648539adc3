"""The MLflow server: on the stack's Postgres, artifacts in a folder, never waited for."""

import sys
from pathlib import Path

from homeostat.cli.stack import probes
from homeostat.cli.stack.ports import LOOPBACK
from homeostat.cli.stack.program import Program
from homeostat.cli.stack.servers import postgres

DATABASE = "mlflow"


def program(folder: Path, *, port: int, database_url: str) -> Program:
    """``database_url`` is any database of the server; MLflow gets one of its own beside it."""
    artifacts = folder / "artifacts"

    def prepare() -> None:
        artifacts.mkdir(parents=True, exist_ok=True)
        postgres.create_database(database_url, DATABASE)

    server, _, _ = database_url.rpartition("/")
    _, _, address = server.partition("://")
    return Program(
        name="mlflow",
        argv=(
            *(sys.executable, "-m", "mlflow", "server"),
            *("--host", LOOPBACK, "--port", str(port), "--workers", "1"),
            *("--serve-artifacts", "--artifacts-destination", artifacts.as_uri()),
        ),
        ports={"mlflow": port},
        ready=probes.http(port, "/health"),
        # The address holds the password, hence not among the arguments.
        env={
            "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg://{address}/{DATABASE}",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        },
        cwd=folder,
        prepare=prepare,
    )


def url(*, port: int) -> str:
    return f"http://{LOOPBACK}:{port}"
