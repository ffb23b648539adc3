"""A compacted topic followed on a real broker: what is told, and what the disk is for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from homeostat.cli.testing import SessionStack
from homeostat.common import kafka, topics

pytestmark = pytest.mark.integration
WAIT_SECONDS = 30
NOBODY = "127.0.0.1:1"  # nothing listens there

Told = tuple[str, int | None]
Write = Callable[[Sequence[tuple[str, bytes | None]]], Awaitable[None]]


@pytest.fixture
async def topic(stack: SessionStack) -> topics.Topic:
    topic = replace(topics.PIPELINES, template=f"view-{uuid4().hex[:8]}")
    await kafka.ensure_topics(stack.kafka, [(topic.of(), topic)])
    return topic


@pytest.fixture
async def write(stack: SessionStack, topic: topics.Topic) -> AsyncIterator[Write]:
    producer = kafka.producer(stack.kafka, client_id="test")
    await producer.start()

    async def written(records: Sequence[tuple[str, bytes | None]]) -> None:
        for key, value in records:
            await producer.send_and_wait(topic.of(), value, key=key.encode())

    yield written
    await producer.stop()


class Following:
    """A view over the topic and what it has told; an older number never replaces a newer one."""

    def __init__(self, topic: topics.Topic, broker: str, directory: Path | None = None) -> None:
        self.told: list[Told] = []
        self.seen: list[Mapping[str, int]] = []  # the values at each record that is read
        self.view = kafka.CompactedView(
            topic,
            self._decode,
            bootstrap_servers=broker,
            client_id="test",
            directory=directory,
            on_change=lambda key, value: self.told.append((key, value)),
            is_newer=lambda new, old: new >= old,
        )

    def _decode(self, value: bytes) -> int:
        self.seen.append(dict(self.view.values))
        return int(value)

    async def __aenter__(self) -> Following:
        await self.view.start()
        return self

    async def __aexit__(self, *_error: Any) -> None:
        await self.view.stop()

    async def told_of(self, key: str, value: int | None) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            await self.view.wait_for(lambda _values: (key, value) in self.told)


async def test_history_is_told_as_it_ended_and_then_each_change(
    stack: SessionStack, topic: topics.Topic, write: Write
) -> None:
    await write([("gone", b"1"), ("kept", b"1"), ("kept", b"2"), ("gone", None), ("bad", b"?")])

    async with Following(topic, stack.kafka) as following:
        await following.told_of("kept", 2)
        assert following.told == [("kept", 2)]

        await write([("kept", b"1"), ("kept", b"3"), ("kept", b"x")])
        await following.told_of("kept", 3)
        await write([("kept", None), ("new", b"1")])
        await following.told_of("new", 1)

    assert following.told == [("kept", 2), ("kept", 3), ("kept", None), ("new", 1)]
    assert following.view.undecodable == 2


async def test_values_never_stand_amid_history(
    stack: SessionStack, topic: topics.Topic, write: Write
) -> None:
    await write([("gone", b"1"), ("kept", b"1"), ("gone", None), ("kept", b"2")])

    async with Following(topic, stack.kafka) as following:
        held = following.view.values  # as services hold it for good
        await following.told_of("kept", 2)

    assert following.seen == [{}] * 3
    assert held == {"kept": 2}


async def test_without_a_broker_the_last_good_values_come_from_the_disk(
    stack: SessionStack, topic: topics.Topic, write: Write, tmp_path: Path
) -> None:
    await write([("kept", b"2"), ("kept", b"x")])
    async with Following(topic, stack.kafka, tmp_path) as following:
        await following.told_of("kept", 2)

    async with Following(topic, NOBODY, tmp_path) as alone:
        assert alone.told == [("kept", 2)]
        assert alone.view.is_usable
        assert not alone.view.is_caught_up

    async with Following(topic, NOBODY, tmp_path / "empty") as lost:
        assert not lost.view.is_usable
