"""One Faust worker: ``python -m homeostat.features.worker --pipeline NAME``, a child of ``main``.

It folds one definition of a pipeline's features, or reads the raw input and makes the log of it
that all definitions fold, or does both.

It ends with 0 after SIGTERM, when everything it took in is committed, and otherwise by crashing:
its supervisor starts it again, and it goes on where the last transaction stands.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import msgspec
import numpy as np
from aiokafka import AIOKafkaProducer, TopicPartition
from opentelemetry import trace
from redis.asyncio import Redis

from homeostat.common import kafka, telemetry, topics
from homeostat.common.events import EventContract
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import Pipeline, Snapshot
from homeostat.common.windows.warm_up import warm_up
from homeostat.features.agents import EventsPartition, LabelsPartition, StagePartition
from homeostat.features.batches import RESTORE_PATIENCE, BatchApp, GroupSettings
from homeostat.features.deduplication import CHUNK_IDS, RecentIds
from homeostat.features.hops import HopCodec
from homeostat.features.partitioning import partitions_of
from homeostat.features.partitions import Context, InputPartition
from homeostat.features.publisher import Publisher
from homeostat.features.rebalancing import Assignment
from homeostat.features.reports import PartitionReport, Report
from homeostat.features.settings import Settings
from homeostat.features.supervision import Role, group_of

logger = logging.getLogger(__name__)

REPORT_SECONDS = 0.5
CONFIRM_SECONDS = 0.5
GC_ALLOCATIONS = 50_000  # net, between two looks: some batches of the largest size
STOP_SECONDS = 10.0
CRASHED = 1
FORCED = 130  # the exit status after a second signal


class Stop:
    """Called when the worker shall end: by a signal, or because its supervisor is gone.

    While it starts there is nothing to settle, and a server that it waits for may be away for long:
    it ends at once. So it does at the second call.
    """

    def __init__(self) -> None:
        self.wished = asyncio.Event()
        self.is_starting = True

    def __call__(self) -> None:
        if self.wished.is_set():
            os._exit(FORCED)
        if self.is_starting:
            logger.info("ends while starting")
            logging.shutdown()
            os._exit(0)
        self.wished.set()


class Supervised(asyncio.BaseProtocol):
    """The pipe to the supervisor, whose loss is the supervisor's death."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def connection_lost(self, _error: Exception | None) -> None:
        logger.warning("the supervisor is gone")
        if not self._stop.wished.is_set():
            self._stop()


async def run(
    pipeline: Pipeline, settings: Settings, *, role: Role, report_to: int | None = None
) -> None:
    """Work until SIGTERM; raises whatever makes going on impossible."""
    loop = asyncio.get_running_loop()
    failed: asyncio.Future[None] = loop.create_future()

    def fail(error: BaseException) -> None:
        if not failed.done():
            failed.set_exception(error)

    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    reports = None if report_to is None else await _supervised(report_to, stop)

    view = FeatureView(pipeline)
    for named in (
        topics.of_pipeline(pipeline),
        topics.of_definition(pipeline, view.definition_hash),
    ):
        await kafka.ensure_topics(settings.kafka_bootstrap_servers, named)
    async with AsyncExitStack() as stack:
        context = await _context(stack, view, settings, role, fail)
        assignment = Assignment(_factory(context), fail)
        await asyncio.to_thread(load_kernels, context.view)
        _spare_the_collector()
        app = _application(context, assignment, role)
        await stack.enter_async_context(_started(app, assignment))
        stop.is_starting = False
        beating = asyncio.create_task(_confirm(app, assignment, settings.heartbeat_interval))
        if reports is not None:
            reporting = asyncio.create_task(_report(assignment, app, reports))
            stack.callback(reporting.cancel)
        ends: list[asyncio.Future[Any]] = [
            failed,
            asyncio.ensure_future(stop.wished.wait()),
            asyncio.ensure_future(app.wait_until_stopped()),
            beating,
        ]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends[1:]:
            end.cancel()
        for end in (failed, beating):
            if end.done():
                end.result()
        if not stop.wished.is_set():
            raise RuntimeError("the consumer has stopped") from app.crash_reason
        logger.info("draining")


def load_kernels(view: FeatureView) -> None:
    """Load or compile every kernel, before the group counts on this worker's heartbeats."""
    partitions_of([b"key"], 2)
    ids = RecentIds(horizon_ms=0, capacity=0)
    for now in range(2):
        ids.admit(np.arange(CHUNK_IDS, dtype=np.uint64) + np.uint64(now * CHUNK_IDS), now)
    for fold in view.folds.values():
        warm_up(fold)


def _spare_the_collector() -> None:
    """Batches are trees of short-lived values: looking for cycles among them finds nothing."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 100)


async def _context(
    stack: AsyncExitStack,
    view: FeatureView,
    settings: Settings,
    role: Role,
    fail: Callable[[BaseException], None],
) -> Context:
    pipeline = view.pipeline
    group = group_of(pipeline.name, view.definition_hash, role)
    producer: AIOKafkaProducer = kafka.producer(settings.kafka_bootstrap_servers, client_id=group)
    await producer.start()
    stack.push_async_callback(producer.stop)
    redis = Redis.from_url(str(settings.redis_url), socket_timeout=5.0, socket_connect_timeout=2.0)
    stack.push_async_callback(redis.aclose)
    return Context(
        settings=settings,
        view=view,
        contract=EventContract(pipeline),
        codec=HopCodec(view),
        partitions=len(await producer.partitions_for(topics.BY_KEY.of(pipeline.name))),
        group=group,
        redis=redis,
        publisher=Publisher(producer),
        tracer=trace.get_tracer("homeostat.features"),
        fail=fail,
    )


def _factory(context: Context) -> Callable[[TopicPartition], InputPartition[Any]]:
    name = context.pipeline
    entity_of = {log: entity for entity, log in context.view.logs.items()}

    def make(source: TopicPartition) -> InputPartition[Any]:
        if source.topic == topics.EVENTS.of(name):
            return EventsPartition(source, context)
        if source.topic == topics.LABELS.of(name):
            return LabelsPartition(source, context)
        return StagePartition(source, context, entity_of[source.topic])

    return make


def _application(context: Context, assignment: Assignment, role: Role) -> BatchApp:
    settings, name = context.settings, context.pipeline
    group = GroupSettings(
        bootstrap_servers=settings.kafka_bootstrap_servers,
        group_id=context.group,
        session_timeout=settings.session_timeout,
        max_records=settings.max_fetch_records,
        fetch_wait=settings.fetch_wait,
        restore_patience=settings.fill_patience if role is Role.FOLD else RESTORE_PATIENCE,
    )
    app = BatchApp.of(group, assignment)
    raw = [] if role is Role.FOLD else [topics.EVENTS.of(name), topics.LABELS.of(name)]
    logs = [] if role is Role.INTAKE else context.view.logs.values()
    for topic in (*raw, *logs):
        app.take_batches(topic, assignment.process)

    async def release(_app: Any, _revoked: Any, **_signal: Any) -> None:
        await assignment.release()

    app.on_partitions_revoked.connect(release, weak=False)  # type: ignore[arg-type]  # as documented
    return app


@asynccontextmanager
async def _started(app: BatchApp, assignment: Assignment) -> AsyncIterator[None]:
    """Settle and commit before the group is left, so that the next owner finds it all."""
    app.finalize()
    await app.start()
    try:
        yield
    except BaseException:
        await assignment.abandon()
        raise  # the process ends without Faust's leave: its threads may be what hangs
    await assignment.release()
    await asyncio.wait_for(app.stop(), STOP_SECONDS)


async def _confirm(app: BatchApp, assignment: Assignment, interval: timedelta) -> None:
    """Keep the progress of partitions true that are read to the end of a broker that answers.

    Readers take rows whose progress is old for stale; an input without traffic is not, nor one
    that has just caught up.
    """
    while True:
        await asyncio.sleep(min(CONFIRM_SECONDS, interval.total_seconds()))
        for partition in assignment.partitions:
            seen = app.last_seen(partition.source)
            if seen is not None:
                partition.look(seen.end, seen.at, tell_every=interval)


async def _supervised(file: int, stop: Stop) -> asyncio.WriteTransport:
    """The pipe for reports; the worker stops when nobody holds its other end any more."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_write_pipe(lambda: Supervised(stop), os.fdopen(file, "wb"))
    return transport


async def _report(assignment: Assignment, app: BatchApp, reports: asyncio.WriteTransport) -> None:
    """Tell the supervisor where every partition stands; silence tells it more."""
    while not reports.is_closing():
        report = Report(
            [_partition_report(app, partition) for partition in assignment.partitions],
            assignment.restore_seconds,
        )
        reports.write(msgspec.json.encode(report) + b"\n")
        await asyncio.sleep(REPORT_SECONDS)


def _partition_report(app: BatchApp, partition: InputPartition[Any]) -> PartitionReport:
    position, seen = partition.marker.position, app.last_seen(partition.source)
    return PartitionReport(
        partition.source.topic,
        partition.source.partition,
        position,
        partition.committed.position,
        partition.committed.counters,
        end=position if seen is None else max(position, seen.end),
        current_at=partition.current_at,
        freshness=partition.freshness.counts,
        freshness_sum=partition.freshness.sum_seconds,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Fold the events of one pipeline.")
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--snapshot", help="file of the snapshot; else the topic is asked")
    parser.add_argument("--role", type=Role, choices=[*Role], default=Role.ALL)
    parser.add_argument("--report-to", type=int, help="file descriptor for progress reports")
    arguments = parser.parse_args()
    settings = Settings()
    telemetry.setup("features")
    pipeline = asyncio.run(_pipeline(arguments.pipeline, settings, arguments.snapshot))
    work = run(pipeline, settings, role=arguments.role, report_to=arguments.report_to)
    asyncio.run(_run_or_exit(work))
    return 0


async def _run_or_exit(work: Coroutine[Any, Any, None]) -> None:
    """Run, and end the process at the first error.

    From inside the loop: to close one that has crashed, asyncio waits for tasks of Faust's that
    will not be cancelled.
    """
    try:
        await work
    except Exception:
        logger.exception("worker ends")
        logging.shutdown()
        os._exit(CRASHED)


async def _pipeline(name: str, settings: Settings, snapshot: str | None) -> Pipeline:
    if snapshot is not None:
        return Snapshot.decode(await asyncio.to_thread(_read, snapshot)).pipeline
    view = kafka.CompactedView(
        topics.PIPELINES,
        Snapshot.decode,
        bootstrap_servers=settings.kafka_bootstrap_servers,
        client_id=f"features-{name}",
    )
    await view.start()
    try:
        await view.wait_for(lambda snapshots: name in snapshots)
        return view.values[name].pipeline
    finally:
        await view.stop()


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


if __name__ == "__main__":
    sys.exit(main())
