"""Bad files given to commands: one clear error with line, path and fix, and an exit code."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from homeostat.cli.main import app
from homeostat.cli.testing import RunningSystem

PAYMENTS = Path(__file__).parents[1] / "e2e" / "payments.yaml"
POLICY = PAYMENTS.with_name("policy.yaml")

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

BAD_FILES: list[tuple[str, str | bytes, list[str]]] = [
    ("a misspelt key", "unti: customer_id\n", [":1 unti", "did you mean 'unit'?"]),
    ("a key twice", "name: a\nname: b\n", [":2", "line 1"]),
    ("no YAML", "name: [a\n", [":2"]),
    ("an anchor", "name: &a b\n", [":1", "anchors"]),
    ("a tag", "name: !!python/object:os.system x\n", [":1", "tag"]),
    ("nothing", "", ["empty"]),
    ("a list", "- a\n- b\n", [":1"]),
    ("bytes that are not UTF-8", b"name: \xff\n", ["cannot be read"]),
    ("NUL", b"name: a\0b\n", ["not valid YAML"]),
    ("lists without end", "a: " + "[" * 5_000 + "]" * 5_000, [":1", "nested"]),
    ("two megabytes", "# " + "x" * 2_000_000, ["larger than"]),
    ("an integer without end", "lateness: " + "9" * 5_000, [":1 lateness"]),
]


@pytest.mark.parametrize("command", ["validate", "apply", "plan"])
@pytest.mark.parametrize(
    ("content", "names"), [row[1:] for row in BAD_FILES], ids=[row[0] for row in BAD_FILES]
)
def test_a_bad_pipeline_file_is_told_by_line(
    system: RunningSystem, tmp_path: Path, command: str, content: str | bytes, names: list[str]
) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)

    told = refused(system, command, str(file))

    assert [name for name in names if name not in told] == []


def test_each_problem_of_a_file_is_told_with_its_own_line(
    system: RunningSystem, tmp_path: Path
) -> None:
    lines = PAYMENTS.read_text().splitlines()
    number = next(row for row, line in enumerate(lines, 1) if "travel_speed" in line)
    lines[number - 1] = lines[number - 1].replace("latitude", "latitde")
    (tmp_path / "policy.yaml").write_text(POLICY.read_text())
    file = tmp_path / "pipeline.yaml"
    file.write_text("\n".join(lines).replace("lateness: 15m", "lateness: 15"))

    told = refused(system, "validate", str(file))

    late = next(row for row, line in enumerate(lines, 1) if line.startswith("lateness"))
    assert f"pipeline.yaml:{late} lateness: a duration needs its unit" in told


@pytest.mark.parametrize("command", ["replay", "backtest"])
@pytest.mark.parametrize(
    ("content", "name"),
    [
        (None, "there is no file"),
        (b"", "Parquet"),
        (b"not a table", "Parquet"),
        (pa.table({"transaction_id": ["t1"]}), "event_time: no such column"),
        (pa.table({"event_tme": [1]}), "did you mean 'event_tme'?"),
    ],
    ids=["no file", "an empty file", "text", "missing columns", "a misspelt column"],
)
def test_a_bad_recording_is_told_by_what_is_missing(
    system: RunningSystem, tmp_path: Path, command: str, content: pa.Table | bytes | None, name: str
) -> None:
    file = tmp_path / "payments.parquet"
    if isinstance(content, pa.Table):
        pq.write_table(content, file)
    elif content is not None:
        file.write_bytes(content)
    words = {
        "replay": ["replay", str(file), "--pipeline", str(PAYMENTS)],
        "backtest": ["backtest", str(PAYMENTS), str(file)],
    }

    told = refused(system, *words[command])

    assert name in told


@pytest.mark.parametrize(
    "option", [["--step", "often"], ["--step", "-1h"], ["--step", "0s"], ["--from", "someday"]]
)
@pytest.mark.parametrize("command", ["replay", "backtest"])
def test_an_option_that_makes_no_sense_is_told(
    system: RunningSystem, tmp_path: Path, command: str, option: list[str]
) -> None:
    file = tmp_path / "payments.parquet"
    file.touch()
    words = {
        "replay": ["replay", str(file), "--pipeline", str(PAYMENTS)],
        "backtest": ["backtest", str(PAYMENTS), str(file)],
    }

    told = refused(system, *words[command], *option)

    assert option[0] in told


def refused(system: RunningSystem, *words: str) -> str:
    """What a command says that ends with an error of ours, not with a traceback."""
    done = CliRunner().invoke(app, words, env={"HOMEOSTAT_HOME": str(system.home.root)})
    assert done.exit_code in (1, 2), (done.stdout, done.exception)
    assert isinstance(done.exception, SystemExit), done.exception
    return done.stderr
