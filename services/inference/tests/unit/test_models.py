"""What is loaded follows the rollouts: bad versions are quarantined, old ones drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from homeostat.common.errors import NotFound, TransientError
from homeostat.common.pipeline import Pipeline
from homeostat.common.schemas.models import ModelVersion, VersionState
from homeostat.common.schemas.rollouts import Phase, RolloutSnapshot
from homeostat.inference.models import Models, ModelState
from homeostat.inference.scorer import ModelRefused


@dataclass(frozen=True)
class File:
    content: bytes
    path: Path = Path("unused")


@dataclass
class Source:
    """Files by version; those in ``refused`` do not pass the probe."""

    files: dict[int, bytes] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    probed: list[int] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    hanging: set[int] = field(default_factory=set)  # of these versions, nobody ever answers

    async def fetch(self, version: ModelVersion) -> File:
        await self.gate.wait()
        if version.version in self.hanging:
            await asyncio.Event().wait()
        if version.version not in self.files:
            raise TransientError("the file is away")
        return File(self.files[version.version])

    async def probe(self, version: ModelVersion, _path: Path) -> None:
        self.probed.append(version.version)
        if version.version in self.refused:
            raise ModelRefused("the child died (SIGSEGV)")


class Bench:
    """Models under test, with two trained versions at hand."""

    def __init__(self, workshop: Any, pipeline: Pipeline) -> None:
        self.source = Source()
        self.source.gate.set()
        self.models = Models(
            fetch=self.source.fetch, probe=self.source.probe, drain=timedelta(seconds=60)
        )
        self.trained = {number: workshop.train(pipeline, number) for number in (1, 2, 3)}
        self.source.files = {number: item.content for number, item in self.trained.items()}

    def announce(self, number: int, **changes: Any) -> None:
        version = msgspec.structs.replace(self.trained[number].version, **changes)
        self.models.announce(f"fraud/{number}", version)

    def decide(self, champion: int | None, challenger: int | None = None) -> None:
        self.models.follow(
            "fraud",
            RolloutSnapshot("fraud", "salt", 1, 1, Phase.CANARY, champion, challenger),
        )

    async def settle(self) -> None:
        await asyncio.sleep(0)
        await self.models.settled("fraud")
        await asyncio.sleep(0)

    def states(self) -> dict[int, ModelState]:
        return {status.version: status.state for status in self.models.statuses("fraud")}

    def champion(self) -> int:
        return self.models.champion("fraud").version.version


@pytest.fixture
async def bench(workshop: Any, make_pipeline: Callable[..., Pipeline]) -> AsyncIterator[Bench]:
    made = Bench(workshop, make_pipeline("fraud"))
    yield made
    await made.models.stop()


async def test_only_named_versions_are_loaded(bench: Bench) -> None:
    for number in (1, 2, 3):
        bench.announce(number)
    bench.decide(1, 3)
    await bench.settle()

    assert bench.states() == {1: ModelState.READY, 3: ModelState.READY}
    assert bench.champion() == 1


async def test_a_version_whose_file_hangs_keeps_no_other_waiting(bench: Bench) -> None:
    bench.source.hanging.add(3)
    bench.announce(3)
    bench.decide(None, 3)
    await asyncio.sleep(0)

    bench.announce(1)
    bench.decide(1, 3)
    async with asyncio.timeout(20):
        while bench.states().get(1) is not ModelState.READY:
            await bench.models.changed()

    assert bench.states() == {1: ModelState.READY, 3: ModelState.LOADING}


async def test_the_old_champion_serves_until_the_new_one_is_ready_and_then_drains(
    bench: Bench,
) -> None:
    bench.announce(1)
    bench.announce(2)
    bench.decide(1)
    await bench.settle()
    bench.source.gate.clear()
    bench.decide(2)
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert bench.champion() == 1

    bench.source.gate.set()
    await bench.settle()
    assert bench.champion() == 2
    assert bench.states() == {1: ModelState.DRAINING, 2: ModelState.READY}
    assert bench.models.get("fraud", 1).version.version == 1  # for routers that have not heard


async def test_a_version_that_crashes_its_child_is_quarantined_and_tried_once(bench: Bench) -> None:
    bench.source.refused.add(2)
    bench.announce(1)
    bench.announce(2)
    bench.decide(1, 2)
    await bench.settle()
    bench.decide(1, 2)
    await bench.settle()

    assert bench.states() == {1: ModelState.READY, 2: ModelState.QUARANTINED}
    assert bench.source.probed.count(2) == 1
    with pytest.raises(TransientError, match="quarantined"):
        bench.models.get("fraud", 2)
    assert bench.champion() == 1
    assert bench.models.problem() is None


async def test_a_file_that_is_away_is_tried_again(bench: Bench) -> None:
    content = bench.source.files.pop(1)
    bench.announce(1)
    bench.decide(1)
    await bench.settle()

    assert bench.states() == {1: ModelState.UNAVAILABLE}
    assert bench.models.problem() is not None

    bench.source.files[1] = content
    while bench.states() != {1: ModelState.READY}:
        await bench.models.changed()
    assert bench.champion() == 1
    assert bench.models.problem() is None


async def test_only_an_approved_version_is_loaded(bench: Bench) -> None:
    bench.announce(1)
    bench.announce(2, state=VersionState.REJECTED)
    bench.decide(1, 2)
    await bench.settle()

    assert bench.states() == {1: ModelState.READY}
    with pytest.raises(TransientError):
        bench.models.get("fraud", 2)


async def test_a_version_nobody_announced_is_unknown(bench: Bench) -> None:
    bench.announce(1)
    bench.decide(1)
    await bench.settle()

    with pytest.raises(NotFound, match="fraud version 9"):
        bench.models.get("fraud", 9)
    with pytest.raises(TransientError, match="no champion"):
        bench.models.champion("recommendation")
