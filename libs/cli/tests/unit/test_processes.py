"""Telling processes apart, and ending them."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from homeostat.cli.stack import processes
from homeostat.cli.stack.processes import MARK, ProcessId

Start = Callable[..., subprocess.Popen[str]]

SLEEPER = "print('up', flush=True); import time; time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a Python program that says when it is up; ends it after the test."""
    with ExitStack() as stack:

        def start_one(code: str, **env: str) -> subprocess.Popen[str]:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", code],
                    env={**os.environ, **env},
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
            return process

        yield start_one


def test_a_pid_that_was_given_to_another_process_is_not_the_recorded_one() -> None:
    me = ProcessId.current()
    earlier = ProcessId(me.pid, me.started - 3600)

    assert me.is_running
    assert not earlier.is_running


def test_a_process_that_ended_is_not_running(start: Start) -> None:
    child = start(SLEEPER)
    identity = ProcessId.of(child.pid)
    assert identity is not None

    child.kill()
    child.wait()

    assert not identity.is_running


def test_a_process_is_found_by_the_stack_it_belongs_to(start: Start, tmp_path: Path) -> None:
    ours = start(SLEEPER, **{MARK: str(tmp_path)})
    start(SLEEPER, **{MARK: str(tmp_path / "another")})

    assert [process.pid for process in processes.marked(tmp_path)] == [ours.pid]


def test_a_process_that_ignores_the_request_is_killed(start: Start) -> None:
    child = start(STUBBORN)

    processes.end([psutil.Process(child.pid)], grace=0.2)

    assert not psutil.pid_exists(child.pid)


def test_ending_what_already_ended_is_no_error(start: Start) -> None:
    child = start(SLEEPER)
    process = psutil.Process(child.pid)
    child.kill()
    child.wait()

    processes.end([process], grace=0.2)
