"""The command's manners: quick help, clear refusals, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from homeostat.cli.main import app

HEAVY = {"aiokafka", "fastapi", "httpx", "mlflow", "numpy", "psutil", "rich", "xgboost"}
IMPORTED = """
import sys
from homeostat.cli.main import app
try:
    app(["--help"])
finally:
    print("IMPORTED", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOMEOSTAT_HOME", str(tmp_path / "nothing"))
    return tmp_path / "nothing"


def test_help_imports_nothing_heavy() -> None:
    told = subprocess.run(
        [sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True
    )

    _, _, imported = told.stdout.partition("IMPORTED")
    assert "up" in told.stdout
    assert HEAVY & set(imported.split()) == set()


@pytest.mark.parametrize("name", ["up", "down", "status", "logs", "watch"])
def test_each_help_shows_two_examples(name: str) -> None:
    told = CliRunner().invoke(app, [name, "--help"])

    _, _, examples = told.stdout.partition("Examples:")
    assert examples.count(" homeostat ") >= 2


@pytest.mark.usefixtures("empty_home")
def test_status_without_a_stack_fails_and_says_how_to_start_one() -> None:
    told = CliRunner().invoke(app, ["status"])

    assert told.exit_code == 1
    assert "homeostat up" in told.stdout


def test_status_as_json_is_one_document(empty_home: Path) -> None:
    told = CliRunner().invoke(app, ["status", "-o", "json"])

    assert told.exit_code == 1
    assert json.loads(told.stdout) == {
        "home": str(empty_home),
        "up": False,
        "supervised": False,
        "processes": [],
    }


@pytest.mark.usefixtures("empty_home")
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["up", "--services", "rooter"], "unknown service: rooter"),
        (["up", "--services", "router", "--no-services"], "exclude each other"),
        (["up", "--ports", "random"], "--ports"),
        (["logs", "router"], "no log of 'router'"),
    ],
)
def test_a_wrong_call_is_a_usage_error(arguments: list[str], complaint: str) -> None:
    told = CliRunner().invoke(app, arguments)

    assert told.exit_code == 2
    assert complaint in told.stderr


@pytest.mark.usefixtures("empty_home")
def test_down_without_a_stack_is_no_error() -> None:
    assert CliRunner().invoke(app, ["down"]).exit_code == 0


@pytest.mark.parametrize("command", ["plan", "apply", "replay"])
def test_without_a_broker_a_command_says_so(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    pipeline = Path(__file__).parents[4] / "pipelines/fraud/pipeline.yaml"
    file = tmp_path / "empty.parquet"
    file.touch()
    arguments = [str(file), "--pipeline", str(pipeline)] if command == "replay" else [str(pipeline)]

    told = CliRunner().invoke(app, [command, *arguments])

    assert told.exit_code != 0
    assert "no broker answers at 127.0.0.1:1" in told.output
    assert "homeostat up" in told.output


def test_validate_tells_the_problems_of_every_file(tmp_path: Path) -> None:
    good = Path(__file__).parents[4] / "pipelines" / "fraud" / "pipeline.yaml"
    wrong = [tmp_path / "first.yaml", tmp_path / "second.yaml"]
    for path in wrong:
        path.write_text("ownr: risk\n")

    told = CliRunner().invoke(app, ["validate", str(wrong[0]), str(good), str(wrong[1])])

    assert told.exit_code == 1
    assert "'fraud' is valid" in told.stdout
    for path in wrong:
        assert f"{path}:1 ownr: unknown key 'ownr'" in told.stderr
