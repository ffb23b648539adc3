"""What the README tells a reader to type works as it stands there, and answers what it shows."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from homeostat.cli.stack.services import SERVICES
from homeostat.cli.testing import RunningSystem

ROOT = Path(__file__).parents[2]
COMMAND_SECONDS = 150
STARTS_AND_STOPS = (["make", "up"], ["make", "down"])  # the fixture does

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


def test_the_commands_under_use_it_work_and_answer_as_shown(
    system: RunningSystem, tmp_path: Path
) -> None:
    section = section_of((ROOT / "README.md").read_text(), "Use it")
    up, *typed, down = commands(block_of(section, "bash"))
    shown = json.loads(block_of(section, "json"))
    reader = Reader(tmp_path, system)

    validated, applied, simulated, learnt, trained, lived, predicted = map(reader.types, typed)

    assert (up, down) == STARTS_AND_STOPS
    assert "'fraud' is valid" in validated
    assert "fraud: new" in applied
    assert "payments.parquet: " in simulated
    assert learnt.endswith(", 0 refused\n")
    assert lived.endswith(", 0 refused\n")
    run = json.loads(trained)
    assert (run["state"], run["trigger"]["message"]) == ("queued", "first champion")
    answer = json.loads(predicted)
    assert lasting(answer) == lasting(shown)
    assert answer["decision"] == (answer["score"] >= answer["threshold"])


class Reader:
    """Somebody in the repository's folder who types; what is written stays out of it."""

    def __init__(self, folder: Path, system: RunningSystem) -> None:
        self._folder = folder
        self._environment = os.environ | {"HOMEOSTAT_HOME": str(system.home.root)}
        self._addresses = {
            f"localhost:{service.port}": system.url(service.name).removeprefix("http://")
            for service in SERVICES
        }
        (folder / "pipelines").symlink_to(ROOT / "pipelines")
        (folder / ".venv").symlink_to(sys.prefix)

    def types(self, words: Sequence[str]) -> str:
        """What a command prints; it has to succeed."""
        for documented, actual in self._addresses.items():
            words = [word.replace(documented, actual) for word in words]
        if words[0] == "curl":
            words = ["curl", "--silent", "--show-error", "--fail-with-body", *words[1:]]
        done = subprocess.run(
            words,
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout


def lasting(prediction: dict[str, Any]) -> dict[str, Any]:
    """A prediction without what another training or another asking changes."""
    passing = ("prediction_id", "score", "decision", "threshold")
    return prediction | {name: type(prediction[name]) for name in passing}


def section_of(text: str, title: str) -> str:
    _, _, rest = text.partition(f"\n## {title}\n")
    return rest.partition("\n## ")[0]


def block_of(section: str, language: str) -> str:
    """The only code block of that language."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return str(block)


def commands(block: str) -> Iterator[list[str]]:
    """The words of each command; an open quote goes on in the next line."""
    typed = ""
    for line in block.splitlines(keepends=True):
        typed += line
        try:
            words = shlex.split(typed, comments=True)
        except ValueError:
            continue
        typed = ""
        yield words
    assert not typed, f"an open quote: {typed}"
