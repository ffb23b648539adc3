"""Coalescing: company is taken, never waited for; late rows and full queues are told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from homeostat.common.errors import DeadlineExceeded, HomeostatError, Overloaded
from homeostat.inference.batching import NO_DEADLINE, Batcher


@dataclass(frozen=True)
class Item:
    value: int
    deadline: float = NO_DEADLINE


class Model:
    """Doubles its items; a batch ends when the test says so."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.started = asyncio.Event()
        self.now = 0.0

    async def run(self, items: list[Item]) -> Sequence[int | HomeostatError]:
        self.batches.append([item.value for item in items])
        self.started.set()
        await self.gate.wait()
        return [item.value * 2 for item in items]

    def batcher(self, *, max_rows: int = 8, capacity: int = 4) -> Batcher[Item, int]:
        return Batcher(self.run, max_rows=max_rows, capacity=capacity, monotonic=lambda: self.now)


async def test_an_idle_batcher_runs_at_once_and_the_next_batch_collects_meanwhile() -> None:
    model = Model()
    batcher = model.batcher()
    first = asyncio.create_task(batcher.submit([Item(1)]))
    await model.started.wait()

    others = [asyncio.create_task(batcher.submit([Item(n)])) for n in (2, 3, 4)]
    await asyncio.sleep(0)
    model.gate.set()

    assert await first == [2]
    assert [await other for other in others] == [[4], [6], [8]]
    assert model.batches == [[1], [2, 3, 4]]


async def test_a_submission_larger_than_a_batch_is_answered_whole_and_in_order() -> None:
    model = Model()
    model.gate.set()

    results = await model.batcher(max_rows=3).submit([Item(n) for n in range(8)])

    assert results == [0, 2, 4, 6, 8, 10, 12, 14]
    assert model.batches == [[0, 1, 2], [3, 4, 5], [6, 7]]


async def test_a_row_whose_deadline_passed_while_it_waited_leaves_the_batch() -> None:
    model = Model()
    batcher = model.batcher()
    first = asyncio.create_task(batcher.submit([Item(1)]))
    await model.started.wait()
    second = asyncio.create_task(batcher.submit([Item(2, deadline=5.0), Item(3, deadline=50.0)]))
    await asyncio.sleep(0)

    model.now = 10.0
    model.gate.set()

    assert await first == [2]
    late, scored = await second
    assert isinstance(late, DeadlineExceeded)
    assert scored == 6
    assert model.batches == [[1], [3]]


async def test_a_full_queue_refuses_and_keeps_what_it_has() -> None:
    model = Model()
    batcher = model.batcher(capacity=2)
    first = asyncio.create_task(batcher.submit([Item(1)]))
    await model.started.wait()
    waiting = asyncio.create_task(batcher.submit([Item(2), Item(3)]))
    await asyncio.sleep(0)

    with pytest.raises(Overloaded):
        await batcher.submit([Item(4)])

    model.gate.set()
    assert await first == [2]
    assert await waiting == [4, 6]


async def test_a_row_whose_caller_has_gone_is_not_scored() -> None:
    model = Model()
    batcher = model.batcher()
    first = asyncio.create_task(batcher.submit([Item(1)]))
    await model.started.wait()
    gone = asyncio.create_task(batcher.submit([Item(2)]))
    await asyncio.sleep(0)

    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    model.gate.set()
    await first
    await batcher.drain()

    assert model.batches == [[1]]


async def test_a_batch_that_breaks_tells_every_caller_and_the_next_one_runs() -> None:
    calls = 0

    async def run(items: list[Item]) -> list[int | HomeostatError]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("broken")
        return [item.value for item in items]

    batcher = Batcher(run, max_rows=8, capacity=8)

    with pytest.raises(RuntimeError, match="broken"):
        await batcher.submit([Item(1), Item(2)])
    assert await batcher.submit([Item(3)]) == [3]
