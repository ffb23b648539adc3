"""Inference behind gRPC: rows that meet are sent together, and nobody waits for company.

A lane is one (pipeline, version, rollout, variant). While its call is in flight the next one
collects, so batches grow with load by themselves. Each row has its own deadline; one that has
passed leaves unsent.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from homeostat.common.assignment import Variant
from homeostat.common.errors import DeadlineExceeded, HomeostatError, TransientError
from homeostat.common.proto import inference_pb2 as pb
from homeostat.common.proto import inference_pb2_grpc as stubs
from homeostat.router import metrics

MAX_IDLE_LANES = 64
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.lb_policy_name", "round_robin"),
)


class Nonsense(TransientError):
    """A score that cannot be one: not finite, not a probability, not the row that was asked for."""


class Refused(HomeostatError):
    """The row itself is wrong: inference says so with a problem document of its own."""

    def __init__(self, row_status: int, document: dict[str, Any]) -> None:
        super().__init__(str(document.get("detail", "inference refused the row")))
        self.row_status = row_status
        self.document = document


@dataclass(frozen=True, slots=True)
class Target:
    """Which model is asked, in which role."""

    pipeline: str
    version: int
    rollout: str
    variant: Variant


@dataclass(frozen=True, slots=True)
class Reply:
    """A checked answer of one row."""

    score: float
    decision: bool
    threshold: float
    features: Sequence[str]
    values: Sequence[float]
    statuses: bytes
    is_degraded: bool


@dataclass(slots=True, eq=False)
class _Waiting:
    row: pb.ScoreRow
    deadline: float
    future: asyncio.Future[Reply]


class Inference:
    """The client of one inference target; replicas behind a ``dns:///`` name take turns."""

    def __init__(self, target: str, *, max_batch_rows: int) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
        self._stub = stubs.InferenceStub(self._channel)  # type: ignore[no-untyped-call] # generated
        self._max_batch_rows = max_batch_rows
        self._lanes: dict[Target, _Lane] = {}

    @property
    def is_connected(self) -> bool:
        """Whether a call would find a server; asking starts a connection attempt."""
        state = self._channel.get_state(try_to_connect=True)
        return state in (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.IDLE)

    async def score(self, target: Target, row: pb.ScoreRow, *, deadline: float) -> Reply:
        """Score one row until ``deadline`` (monotonic seconds).

        Raises:
            Refused: the row is wrong.
            Nonsense: the answer is.
            DeadlineExceeded: no answer in time.
            TransientError: inference or the model is away.
        """
        lane = self._lanes.get(target) or self._open(target)
        future = lane.enqueue(row, deadline)
        try:
            return await asyncio.wait_for(future, deadline - time.monotonic())
        except TimeoutError:
            raise DeadlineExceeded("no score within the deadline") from None

    async def close(self) -> None:
        await asyncio.gather(*(lane.drain() for lane in self._lanes.values()))
        await self._channel.close()

    def _open(self, target: Target) -> _Lane:
        if len(self._lanes) >= MAX_IDLE_LANES:
            self._lanes = {key: lane for key, lane in self._lanes.items() if not lane.is_idle}
        lane = self._lanes[target] = _Lane(self._stub, target, self._max_batch_rows)
        return lane


class _Lane:
    def __init__(self, stub: Any, target: Target, max_rows: int) -> None:
        self._stub = stub
        self._target = target
        self._max_rows = max_rows
        self._queue: deque[_Waiting] = deque()
        self._pump: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        return self._pump is None

    def enqueue(self, row: pb.ScoreRow, deadline: float) -> asyncio.Future[Reply]:
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(row, deadline, future))
        if self._pump is None:
            self._pump = asyncio.create_task(self._run(), name=f"lane {self._target.pipeline}")
        return future

    async def drain(self) -> None:
        if self._pump is not None:
            await asyncio.gather(self._pump, return_exceptions=True)

    async def _run(self) -> None:
        try:
            while batch := self._next():
                await self._send(batch)
        finally:
            self._pump = None

    def _next(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        now = time.monotonic()
        while self._queue and len(batch) < self._max_rows:
            waiting = self._queue.popleft()
            if waiting.future.done() or waiting.deadline <= now:  # its caller has gone, or goes now
                continue
            waiting.row.timeout_ms = max(1, int((waiting.deadline - now) * 1000))
            batch.append(waiting)
        return batch

    async def _send(self, batch: list[_Waiting]) -> None:
        target = self._target
        request = pb.ScoreBatchRequest(
            pipeline=target.pipeline,
            version=target.version,
            rollout=target.rollout,
            variant=target.variant.value,
            rows=[waiting.row for waiting in batch],
        )
        started = time.monotonic()
        longest = max(waiting.deadline for waiting in batch) - started
        try:
            response = await self._stub.ScoreBatch(request, timeout=longest)
        except grpc.aio.AioRpcError as error:
            for waiting in batch:
                _settle(waiting, _failure(error))
            return
        finally:
            metrics.UPSTREAM_SECONDS.observe(time.monotonic() - started)
            metrics.UPSTREAM_ROWS.observe(len(batch))
        if len(response.rows) != len(batch):
            for waiting in batch:
                _settle(waiting, Nonsense("inference answered another number of rows"))
            return
        for waiting, scored in zip(batch, response.rows, strict=True):
            _settle(waiting, _check(waiting.row, scored, response))


def _settle(waiting: _Waiting, result: Reply | HomeostatError) -> None:
    if waiting.future.done():
        return
    if isinstance(result, HomeostatError):
        waiting.future.set_exception(result)
    else:
        waiting.future.set_result(result)


def _failure(error: grpc.aio.AioRpcError) -> HomeostatError:
    detail = f"inference: {error.code().name.lower()}: {error.details()}"
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(detail)
    return TransientError(detail, retry_after_seconds=1)


def _check(
    row: pb.ScoreRow, scored: pb.ScoredRow, response: pb.ScoreBatchResponse
) -> Reply | HomeostatError:
    """The reply of one row, or what is wrong with it: a model is not taken at its word."""
    if scored.prediction_id != row.prediction_id:
        return Nonsense("inference answered another row")
    if scored.status == 504:
        return DeadlineExceeded("the row was late at inference")
    if scored.status in (400, 422):
        return Refused(scored.status, _document(scored.problem))
    if scored.status != 200:
        detail = _document(scored.problem).get("detail", f"status {scored.status}")
        return TransientError(f"inference: {detail}", retry_after_seconds=1)
    if not math.isfinite(scored.score) or not 0.0 <= scored.score <= 1.0:
        return Nonsense(f"a score of {scored.score} is no probability")
    if not len(scored.values) == len(scored.statuses) == len(response.features):
        return Nonsense("the answer's features have another shape")
    return Reply(
        score=scored.score,
        decision=scored.decision,
        threshold=response.threshold,
        features=response.features,
        values=scored.values,
        statuses=scored.statuses,
        is_degraded=scored.is_degraded,
    )


def _document(problem: bytes) -> dict[str, Any]:
    try:
        document = json.loads(problem)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
