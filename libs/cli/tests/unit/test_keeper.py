"""A keeper brings its program back."""

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path

import psutil

from homeostat.cli.stack.keeper import Keeper
from homeostat.cli.stack.program import PreparationFailed, Program
from homeostat.cli.stack.state import Phase

FAILS_ONCE = """
import pathlib, sys, time
been_here = pathlib.Path(sys.argv[1])
if not been_here.exists():
    been_here.touch()
    sys.exit(7)
print("second life", flush=True)
pathlib.Path(sys.argv[2]).touch()
time.sleep(60)
"""


def _program(folder: Path) -> Program:
    up = folder / "up"

    async def ready() -> bool:
        return await asyncio.to_thread(up.exists)

    return Program(
        name="fails-once",
        argv=(sys.executable, "-c", FAILS_ONCE, str(folder / "been-here"), str(up)),
        ports={},
        ready=ready,
        grace=5,
    )


def _keeper(program: Program, folder: Path, phases: list[Phase]) -> Keeper:
    keeper = Keeper(
        program,
        log=folder / "program.log",
        env=os.environ,
        changed=lambda: phases.append(keeper.state.phase),
    )
    return keeper


async def test_a_crashed_program_is_started_again_and_its_output_kept(tmp_path: Path) -> None:
    phases: list[Phase] = []
    keeper = _keeper(_program(tmp_path), tmp_path, phases)

    keeper.start()
    await asyncio.wait_for(keeper.up.wait(), timeout=30)
    process = keeper.state.process
    await keeper.stop()

    assert phases == [
        *(Phase.PREPARING, Phase.STARTING, Phase.CRASHED),
        *(Phase.PREPARING, Phase.STARTING, Phase.READY),
        Phase.STOPPED,
    ]
    assert keeper.state.restarts == 1
    assert (tmp_path / "program.log").read_text() == "second life\n"
    assert process is not None
    assert not psutil.pid_exists(process.pid)


async def test_a_failed_preparation_is_tried_again_and_logged(tmp_path: Path) -> None:
    attempts: list[int] = []

    def prepare() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise PreparationFailed("the disk was away")

    (tmp_path / "been-here").touch()
    keeper = _keeper(replace(_program(tmp_path), prepare=prepare), tmp_path, [])

    keeper.start()
    await asyncio.wait_for(keeper.up.wait(), timeout=30)
    await keeper.stop()

    assert len(attempts) == 2
    assert "the disk was away" in (tmp_path / "program.log").read_text()
