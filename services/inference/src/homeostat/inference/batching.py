"""Coalescing: requests that meet are answered together, and nobody waits for company.

An idle batcher runs what it is given at once. While a batch is in flight the next one collects,
so batches grow with load by themselves. The queue is bounded, and rows whose deadline has passed
leave it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from homeostat.common.errors import DeadlineExceeded, HomeostatError, Overloaded


class Expiring(Protocol):
    @property
    def deadline(self) -> float:
        """Monotonic seconds; infinity for none."""


I = TypeVar("I", bound=Expiring)  # noqa: E741 - an item
R = TypeVar("R")

NO_DEADLINE = math.inf


@dataclass(slots=True, eq=False)
class _Submission(Generic[R]):
    """What one caller waits for: its results, in its order, all at once."""

    future: asyncio.Future[list[R | HomeostatError]]
    results: list[R | HomeostatError]
    waiting: int

    def settle(self, index: int, result: R | HomeostatError) -> None:
        self.results[index] = result
        self.waiting -= 1
        if not self.waiting and not self.future.done():
            self.future.set_result(self.results)


class Batcher(Generic[I, R]):
    """Runs items in batches of at most ``max_rows``, one batch at a time, in order of arrival."""

    def __init__(
        self,
        run: Callable[[list[I]], Awaitable[Sequence[R | HomeostatError]]],
        *,
        max_rows: int,
        capacity: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._max_rows = max_rows
        self._capacity = capacity
        self._monotonic = monotonic
        self._queue: deque[tuple[_Submission[R], int, I]] = deque()
        self._worker: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Rows that wait."""
        return len(self._queue)

    async def submit(self, items: Sequence[I]) -> list[R | HomeostatError]:
        """The result of each item; an expired one is a ``DeadlineExceeded``.

        Raises:
            Overloaded: the queue has no room for all of them.
        """
        if not items:
            return []
        if self._queue and len(self._queue) + len(items) > self._capacity:
            raise Overloaded(
                f"{len(self._queue)} rows wait already", retry_after_seconds=1, fix="retry later"
            )
        future: asyncio.Future[list[R | HomeostatError]] = (
            asyncio.get_running_loop().create_future()
        )
        blank: list[R | HomeostatError] = [_UNSETTLED] * len(items)
        submission = _Submission(future, blank, len(items))
        self._queue.extend((submission, index, item) for index, item in enumerate(items))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work(), name="batcher")
        return await future

    async def drain(self) -> None:
        """Wait until everything that was submitted is settled."""
        while self._worker is not None:
            await self._worker

    async def _work(self) -> None:
        try:
            while batch := self._next_batch():
                for (submission, index, _), result in zip(
                    batch, await self._settled(batch), strict=True
                ):
                    submission.settle(index, result)
        finally:
            self._worker = None

    async def _settled(
        self, batch: list[tuple[_Submission[R], int, I]]
    ) -> Sequence[R | HomeostatError]:
        try:
            return await self._run([item for _, _, item in batch])
        except Exception as error:  # noqa: BLE001 - not swallowed: every caller of the batch gets it
            for submission, _, _ in batch:
                if not submission.future.done():
                    submission.future.set_exception(error)
            return [_UNSETTLED] * len(batch)

    def _next_batch(self) -> list[tuple[_Submission[R], int, I]]:
        """The oldest rows that are still wanted and not late."""
        batch: list[tuple[_Submission[R], int, I]] = []
        now = self._monotonic()
        while self._queue and len(batch) < self._max_rows:
            submission, index, item = self._queue.popleft()
            if submission.future.done():  # its caller has gone
                continue
            if item.deadline <= now:
                submission.settle(index, expired())
                continue
            batch.append((submission, index, item))
        return batch


def expired() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the row was scored")


_UNSETTLED = HomeostatError("the row has no result")
