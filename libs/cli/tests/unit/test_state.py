"""What commands make of a stack.json that may be older than the truth."""

from pathlib import Path

import pytest

from homeostat.cli.stack.home import Home
from homeostat.cli.stack.processes import ProcessId
from homeostat.cli.stack.state import Phase, ProcessState, StackState
from homeostat.cli.views import status_document

ME = ProcessId.current()
GONE = ProcessId(ME.pid, ME.started - 3600)  # the pid lives, the process does not


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def _state(supervisor: ProcessId, process: ProcessId) -> StackState:
    entry = ProcessState("redis", {"redis": 6379}, phase=Phase.READY, process=process, since=1.0)
    return StackState(supervisor, {"REDIS_URL": "redis://:secret@127.0.0.1:6379/0"}, [entry])


def test_a_state_reads_back_as_it_was_written_for_its_owner_only(home: Home) -> None:
    state = _state(ME, ME)

    state.write(home)

    assert StackState.read(home) == state
    assert home.state.stat().st_mode & 0o077 == 0


def test_a_stack_whose_processes_run_is_up(home: Home) -> None:
    assert status_document(home, _state(ME, ME))["up"]


def test_a_process_whose_pid_was_given_away_counts_as_stopped(home: Home) -> None:
    document = status_document(home, _state(ME, GONE))

    assert not document["up"]
    assert document["processes"][0]["phase"] == Phase.STOPPED


def test_a_stack_without_its_supervisor_is_not_up(home: Home) -> None:
    document = status_document(home, _state(GONE, ME))

    assert not document["up"]
    assert not document["supervised"]


def test_no_stack_is_not_up(home: Home) -> None:
    assert status_document(home, StackState.read(home))["processes"] == []
