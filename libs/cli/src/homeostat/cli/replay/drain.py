"""Waiting until a pipeline stands still: nothing in flight on any hop, no decision pending.

Services are asked one at a time, in the order in which records pass them: while the first hop is
behind, asking the others costs them time and tells nothing. Quiescence is then told by two looks at
the ends of the topics around one look at every service: if no topic grew in between, and each
service had processed all of its inputs, then nothing was in flight.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import httpx
import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from homeostat.common import kafka
from homeostat.common.errors import TransientError

POLL_SECONDS = 0.01
MAX_POLL_SECONDS = 0.2

Positions = Mapping[str, Mapping[str, int]]


class Pending(msgspec.Struct, frozen=True):
    """Something that a service is still deciding or computing."""

    kind: str
    id: str


class Progress(msgspec.Struct, frozen=True):
    """What a service answers on ``/v1/pipelines/{name}/progress``."""

    positions: dict[str, dict[str, int]]
    clock: int | None = None
    pending: list[Pending] = []


@dataclass(frozen=True)
class Lag:
    """What a pipeline is still waiting for, for people to read."""

    topics: Mapping[str, int]  # "service topic" → records behind
    pending: Sequence[str]

    def __bool__(self) -> bool:
        return bool(self.topics or self.pending)

    def __str__(self) -> str:
        behind = [f"{name} is {count} behind" for name, count in self.topics.items()]
        return "; ".join([*behind, *self.pending]) or "nothing"


@dataclass
class _Patience:
    """Rests between two looks, longer each time, and gives up on what does not move."""

    seconds: float
    _delay: float = POLL_SECONDS
    _last: str = ""
    _moved: float = field(default_factory=time.monotonic)

    def begin(self) -> None:
        """Something else is waited for: look often again."""
        self._delay = POLL_SECONDS

    async def rest(self, lag: Lag, pipeline: str) -> None:
        """
        Raises:
            TransientError: the same lag for too long.
        """
        if str(lag) != self._last:
            self._last, self._moved = str(lag), time.monotonic()
        elif time.monotonic() - self._moved > self.seconds:
            raise TransientError(
                f"the pipeline {pipeline!r} does not come to rest: {lag}",
                fix="see homeostat status and homeostat logs",
            )
        await asyncio.sleep(self._delay)
        self._delay = min(self._delay * 1.5, MAX_POLL_SECONDS)


class Drain:
    """Watches the services of one pipeline: ``services`` maps a name to its base address, in the
    order in which records pass them."""

    def __init__(
        self,
        pipeline: str,
        *,
        bootstrap_servers: str,
        services: Mapping[str, str],
        patience: float = 300,
    ) -> None:
        self._pipeline = pipeline
        self._services = services
        self._patience = patience
        self._bootstrap_servers = bootstrap_servers
        self._http = httpx.AsyncClient(timeout=10)
        self._kafka: AIOKafkaConsumer | None = None

    async def __aenter__(self) -> Self:
        self._kafka = kafka.consumer(
            bootstrap_servers=self._bootstrap_servers, client_id="replay-drain"
        )
        await self._kafka.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()
        if self._kafka is not None:
            await self._kafka.stop()

    async def wait(self, *names: str) -> None:
        """Return when the pipeline stands still, or the part of it that ``names`` stand for.

        Raises:
            TransientError: nothing moved for ``patience`` seconds; the message says what is stuck.
        """
        watched = names or tuple(self._services)
        patience = _Patience(self._patience)
        while True:
            passed = {name: await self._pass(name, patience) for name in watched}
            lag = await self._lag(passed)
            if not lag:
                return
            await patience.rest(lag, self._pipeline)

    async def _pass(self, name: str, patience: _Patience) -> Progress:
        """Return when one service has done what was there for it; more may be on its way."""
        patience.begin()
        while True:
            report = await self._ask(name)
            ends = await self._consumer.end_offsets(_partitions({name: report}))
            lag = Lag(_behind({name: report}, ends), _pending({name: report}))
            if not lag:
                return report
            await patience.rest(lag, self._pipeline)

    async def _lag(self, passed: Mapping[str, Progress]) -> Lag:
        before = await self._consumer.end_offsets(_partitions(passed))
        reports = await self._reports(tuple(passed))
        after = await self._consumer.end_offsets(_partitions(reports))
        growing = {} if before == after else {"topics": sum(after.values()) - sum(before.values())}
        return Lag(_behind(reports, after) | growing, _pending(reports))

    @property
    def _consumer(self) -> AIOKafkaConsumer:
        if self._kafka is None:
            raise RuntimeError("Drain is a context manager: use async with")
        return self._kafka

    async def _reports(self, names: Sequence[str]) -> dict[str, Progress]:
        return dict(zip(names, await asyncio.gather(*map(self._ask, names)), strict=True))

    async def _ask(self, service: str) -> Progress:
        address = f"{self._services[service]}/v1/pipelines/{self._pipeline}/progress"
        try:
            response = await self._http.get(address)
            response.raise_for_status()
            return msgspec.json.decode(response.content, type=Progress)
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            waiting = Pending("unreachable", f"{type(error).__name__} {error}")
            return Progress({}, pending=[waiting])


def _partitions(reports: Mapping[str, Progress]) -> list[TopicPartition]:
    return sorted(
        {
            TopicPartition(topic, int(partition))
            for report in reports.values()
            for topic, positions in report.positions.items()
            for partition in positions
        }
    )


def _behind(reports: Mapping[str, Progress], ends: Mapping[TopicPartition, int]) -> dict[str, int]:
    return {
        f"{service} {topic}": missing
        for service, report in reports.items()
        for topic, positions in report.positions.items()
        if (missing := _missing(topic, positions, ends))
    }


def _pending(reports: Mapping[str, Progress]) -> list[str]:
    return [
        f"{service}: {item.kind} {item.id}"
        for service, report in reports.items()
        for item in report.pending
    ]


def _missing(topic: str, positions: Mapping[str, int], ends: Mapping[TopicPartition, int]) -> int:
    return sum(
        max(0, ends[TopicPartition(topic, int(partition))] - position)
        for partition, position in positions.items()
    )
