"""An owned input partition: restored, fed, and settled in one order that no crash can break.

A batch changes state and position together, at once, and is on its way to the broker then. What
is *settled* follows in the background, always in this order: the outputs are acknowledged, the
rows are in the online store, the progress is told, and now and then rows and position are
committed as one. So what a position covers has left the worker, and what is not covered is done
again, with the same results.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import msgspec
from aiokafka import ConsumerRecord, TopicPartition
from opentelemetry import trace
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError

from homeostat.common import telemetry
from homeostat.common.events import EventContract
from homeostat.common.feature_store.online import Progress
from homeostat.common.feature_store.views import FeatureView
from homeostat.features import enrichment
from homeostat.features.changelog import Changelog, Changes, Marker, open_changelog
from homeostat.features.freshness import Freshness
from homeostat.features.hops import I64, HopCodec
from homeostat.features.materializer import Answer, Materializer
from homeostat.features.progress import input_key
from homeostat.features.publisher import Outputs, Publisher
from homeostat.features.settings import Settings

logger = logging.getLogger(__name__)

MAX_UNDELIVERED = 4  # batches a partition may be ahead of the broker's acknowledgements
RETRY_SECONDS = 0.2
# What passes when the online store comes back; a script that it refuses is a fault of ours.
STORE_AWAY = (
    RedisConnectionError,
    RedisTimeoutError,
    OutOfMemoryError,
    ReadOnlyError,
    OSError,
)


class Fenced(Exception):
    """Another worker owns the partition now; this one has to go."""


class InputLost(Exception):
    """Records are missing: a fold over the gap would be wrong, or everything new taken for old."""


@dataclass(frozen=True)
class Context:
    """What the partitions of one worker share."""

    settings: Settings
    view: FeatureView
    contract: EventContract
    codec: HopCodec
    partitions: int  # of every log
    group: str
    redis: Redis
    publisher: Publisher
    tracer: trace.Tracer
    fail: Callable[[BaseException], None]
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def pipeline(self) -> str:
        return self.view.pipeline.name


@dataclass(frozen=True)
class Cut:
    """A state at a position, ready to be settled."""

    marker: Marker
    current_at: int
    changes: Changes
    online_rows: dict[str, bytes]
    is_whole: bool  # every row is in online_rows
    event_times: list[I64]  # epoch ms, of the events that the rows show first
    deliveries: Sequence[asyncio.Task[None]]


class Fetch(Protocol):
    """What a partition has made of a fetch of records."""

    @property
    def traceparents(self) -> Sequence[str | None]: ...

    @property
    def newest_intake(self) -> int: ...


F = TypeVar("F", bound=Fetch)


class Later(NamedTuple):
    """What a batch still sends, and counts, once the answer of a store has come."""

    outputs: Outputs
    counts: Mapping[str, int]


class Handled(NamedTuple):
    """What a batch sends at once, and what it sends later.

    ``later`` is asked for after ``outputs`` are sent, in the order of the batches, while the next
    ones are folded.
    """

    outputs: Outputs
    later: Callable[[], Awaitable[Later]] | None = None


class InputPartition(ABC, Generic[F]):
    """One owned partition of an input topic; subclasses say what a batch does."""

    has_rows = False
    must_be_gapless = False

    def __init__(
        self, source: TopicPartition, context: Context, *, state_topic: str, progress: str
    ) -> None:
        self.source = source
        self.context = context
        self.marker = Marker()
        self.current_at = 0  # epoch ms: all that the broker had then is taken in
        self._told_at = 0  # the same, as the online store knows it
        self.freshness = Freshness()
        self._state_topic = state_topic
        self._materializer = Materializer(
            context.redis,
            pipeline=context.pipeline,
            definition_hash=context.view.definition_hash,
            entity=progress,
            progress=input_key(context.view, progress, source.partition),
        )
        self._changelog: Changelog | None = None
        self._deliveries: deque[asyncio.Task[None]] = deque()
        self._counted_later: deque[tuple[int, Mapping[str, int]]] = deque()  # by position
        self._later_counters: Counter[str] = Counter()
        self._in_order = asyncio.Lock()
        self._woken = asyncio.Event()
        self._is_closing = False
        self._rewrites_all = False
        self._uncommitted = Changes()
        self._cut_marker = self._committed_marker = self.marker
        self._settling: asyncio.Task[None] | None = None

    @property
    def committed(self) -> Marker:
        """The marker of the last transaction."""
        return self._committed_marker

    # What subclasses add -----------------------------------------------------------------------

    @abstractmethod
    def read(self, records: Sequence[ConsumerRecord]) -> F:
        """Read a fetch; this changes nothing."""

    @abstractmethod
    async def handle(self, fetch: F, traceparents: Sequence[str | None]) -> Handled:
        """Fold a fetch and shape its outputs; nothing may be awaited after the first change.

        ``traceparents`` takes the place of the fetch's own: the context to hand on.
        """

    def restore_rows(self, rows: dict[str, bytes], ids: dict[int, bytes]) -> None:
        """Take back what was committed."""

    async def take_history(self, end: int) -> None:
        """Take in what the topic held below ``end``, as far as somebody has kept it."""

    def take_changes(self) -> Changes:
        return Changes()

    def all_rows(self) -> dict[str, bytes]:
        return {}

    # Life ----------------------------------------------------------------------------------------

    async def open(self) -> int:
        """Fence the predecessor, restore, and begin to settle; the next offset to read."""
        settings = self.context.settings
        self._changelog = await open_changelog(
            self.source,
            self._state_topic,
            bootstrap_servers=settings.kafka_bootstrap_servers,
            transaction_timeout=settings.transaction_timeout,
        )
        restored = await self._changelog.restore(settings.kafka_bootstrap_servers)
        self.marker = restored.marker
        self.restore_rows(restored.rows, restored.ids)
        self._check_end(restored.input_ends)
        await self._begin_epoch()
        self._settling = asyncio.create_task(self._settle(), name=f"settle {self.source}")
        if self.marker.position < restored.input_begins:
            await self.take_history(restored.input_begins)
            self.skip_lost(restored.input_begins)
            self._woken.set()
        return self.marker.position

    def _check_end(self, end: int) -> None:
        """A topic that ends before what was read is another one, or has lost records."""
        if end < self.marker.position:
            raise InputLost(
                f"{self.source} ends at {end}, but was read to {self.marker.position}: was the "
                "topic deleted and made anew? Its offsets are the identity of its records: publish "
                "the pipeline under another name"
            )

    def skip_lost(self, begins: int) -> None:
        """Go on behind a range that nobody has any more, and keep account of it."""
        lost = begins - self.marker.position
        if lost > 0:
            if self.marker.position > 0:
                logger.error(
                    "records expired unread", extra={"source": self.source, "records": lost}
                )
                self.count(enrichment.Counter.LOST, lost)
            self.marker.position = begins

    async def _begin_epoch(self) -> None:
        stored = await retried(self._materializer.stored, what="progress")
        self.marker.epoch = max(self.marker.epoch, stored.epoch if stored else 0) + 1
        self.current_at = self._told_at = stored.current_at if stored else 0
        self._rewrites_all = stored is None or stored.offset < self.marker.position
        self._cut_marker = _copy(self.marker)
        await self._commit()
        self._woken.set()

    async def close(self) -> None:
        """Settle and commit all that was taken in, and let go of the partition."""
        self._is_closing = True
        self._woken.set()
        if self._settling is not None:
            await self._settling
        await self._let_go()

    async def abandon(self) -> None:
        """Let go without a commit; whoever takes over does the rest again."""
        self._is_closing = True
        for task in (self._settling, *self._deliveries):
            if task is not None:
                task.cancel()
        await asyncio.gather(
            *(task for task in (self._settling, *self._deliveries) if task), return_exceptions=True
        )
        await self._let_go()

    async def _let_go(self) -> None:
        if self._changelog is not None:
            await self._changelog.close()

    # Batches -------------------------------------------------------------------------------------

    async def process(self, records: Sequence[ConsumerRecord]) -> None:
        """Take in one fetch."""
        if self._is_closing:
            return
        records = self._unread(records)
        if not records:
            return
        fetch = self.read(records)
        with telemetry.process_batch(
            self.context.tracer,
            self.source.topic,
            partition=self.source.partition,
            group=self.context.group,
            traceparents=fetch.traceparents,
        ) as traceparents:
            handled = await self.handle(fetch, traceparents)
            self.marker.position = records[-1].offset + 1
            self.current_at = max(self.current_at, records[-1].timestamp)
            self.marker.pipeline_time = max(self.marker.pipeline_time, fetch.newest_intake)
            self._deliver(handled)
        while len(self._deliveries) > MAX_UNDELIVERED:
            await asyncio.wait([self._deliveries[0]])
            self._forget_delivered()

    def look(self, end: int, at: int, *, tell_every: timedelta) -> None:
        """The topic ended at ``end`` at an instant (epoch ms): if nothing was left, note it.

        The online store is told so often, and at once after a backlog.
        """
        try:
            self._check_end(end)
        except InputLost as error:
            self.context.fail(error)
        if self.marker.position < end:
            return
        self.current_at = max(self.current_at, at)
        if self.current_at - self._told_at >= tell_every / timedelta(milliseconds=1):
            self._woken.set()

    def _unread(self, records: Sequence[ConsumerRecord]) -> Sequence[ConsumerRecord]:
        position = self.marker.position
        if records[0].offset > position and self.must_be_gapless:
            raise InputLost(f"{self.source} goes on at {records[0].offset}, expected {position}")
        if records[0].offset >= position:
            return records
        return [record for record in records if record.offset >= position]

    def count(self, counter: str, number: int = 1) -> None:
        if number:
            self.marker.counters[counter] = self.marker.counters.get(counter, 0) + number

    def _deliver(self, handled: Handled) -> None:
        task = asyncio.create_task(
            self._send(handled, self.marker.position), name=f"deliver {self.source}"
        )
        task.add_done_callback(self._on_delivered)
        self._deliveries.append(task)
        self._woken.set()

    async def _send(self, handled: Handled, position: int) -> None:
        publish = self.context.publisher.publish
        async with self._in_order:
            acknowledgements = await publish(handled.outputs)
            if handled.later is not None:
                later = await handled.later()
                self._counted_later.append((position, later.counts))
                acknowledgements += await publish(later.outputs)
        await asyncio.gather(*acknowledgements)

    def _on_delivered(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.context.fail(error)

    def _forget_delivered(self) -> None:
        while self._deliveries and self._deliveries[0].done():
            self._deliveries.popleft()

    # Settling ------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        try:
            await self._settle_until_closed()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.context.fail(error)
            raise

    async def _settle_until_closed(self) -> None:
        settings = self.context.settings
        pause = settings.materialize_interval.total_seconds()
        commit_every = settings.commit_interval.total_seconds()
        next_commit = time.monotonic() + commit_every
        while not self._is_closing:
            await self._wait(next_commit)
            await self._flush()
            if time.monotonic() >= next_commit:
                await self._commit()
                next_commit = time.monotonic() + commit_every
            await self._pause(pause)
        await self._flush()
        await self._commit()

    async def _wait(self, next_commit: float) -> None:
        """Wait for a batch, or for the time to commit what has been settled."""
        is_dirty = self._cut_marker.position > self._committed_marker.position
        seconds = max(0.0, next_commit - time.monotonic()) if is_dirty else None
        try:
            await asyncio.wait_for(self._woken.wait(), seconds)
        except TimeoutError:
            return

    async def _pause(self, seconds: float) -> None:
        """Let changes of the same rows gather while batches keep coming."""
        if self._woken.is_set() and not self._is_closing:
            await asyncio.sleep(seconds)

    async def _flush(self) -> None:
        if not self._woken.is_set():
            return
        self._woken.clear()
        cut = self._cut()
        if cut.deliveries:
            await asyncio.gather(*cut.deliveries)
        self._forget_delivered()
        self._add_counted_later(cut.marker)
        self._uncommitted.update(cut.changes)
        self._cut_marker = cut.marker
        await self._materialize(cut)

    def _add_counted_later(self, marker: Marker) -> None:
        """Count in a settled marker what the deliveries of the batches below it have counted."""
        while self._counted_later and self._counted_later[0][0] <= marker.position:
            _, counts = self._counted_later.popleft()
            self._later_counters.update(counts)
        counters = Counter(marker.counters)
        counters.update(self._later_counters)
        marker.counters = dict(counters)

    def _cut(self) -> Cut:
        changes = self.take_changes()
        online_rows = self.all_rows() if self._rewrites_all else changes.rows
        deliveries = tuple(self._deliveries)
        times = self.freshness.take()
        return Cut(
            _copy(self.marker),
            self.current_at,
            changes,
            online_rows,
            self._rewrites_all,
            times,
            deliveries,
        )

    async def _materialize(self, cut: Cut) -> None:
        if cut.is_whole:
            self._materializer.start_over()
        marker = cut.marker
        progress = Progress(marker.epoch, marker.position, cut.current_at, marker.pipeline_time)
        try:
            answer = await self._materializer.write(cut.online_rows, progress)
        except STORE_AWAY as error:
            logger.warning("online store unavailable", extra={"error": repr(error)})
            self._rewrites_all = True
            self.freshness.put_back(cut.event_times)
            await asyncio.sleep(RETRY_SECONDS)
            self._woken.set()
            return
        if answer is Answer.OUTDATED:
            raise Fenced(f"{self.source} has a newer owner")
        self._told_at = cut.current_at
        self._rewrites_all = answer is Answer.LOST
        if self._rewrites_all:
            self.freshness.put_back(cut.event_times)
            logger.warning("online store has lost rows, writing all", extra={"source": self.source})
            self._woken.set()
        else:
            self.freshness.readable(cut.event_times, round(time.time() * 1000))

    async def _commit(self) -> None:
        marker, changes = self._cut_marker, self._uncommitted
        is_same = (marker.position, marker.epoch) == (
            self._committed_marker.position,
            self._committed_marker.epoch,
        )
        if is_same or self._changelog is None:
            return
        self._uncommitted = Changes()
        await self._changelog.commit(changes, marker)
        self._committed_marker = marker


async def retried(call: Callable[[], Any], *, what: str) -> Any:
    """Call until the store answers: while it is away the partition waits, and loses nothing."""
    backoff = RETRY_SECONDS
    while True:
        try:
            return await call()
        except STORE_AWAY as error:
            logger.warning("store unavailable", extra={"wanted": what, "error": repr(error)})
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, 5.0)


def _copy(marker: Marker) -> Marker:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(marker), type=Marker)
