"""Alerts and outcomes of one pipeline: read, decided on, and remembered in one transaction."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from homeostat.common import kafka, topics
from homeostat.common.clock import Clock, PipelineClock, from_millis
from homeostat.common.errors import Conflict
from homeostat.common.pipeline import Snapshot
from homeostat.common.schemas.alerts import Alert
from homeostat.common.schemas.labels import Outcome
from homeostat.trainer import metrics, triggers
from homeostat.trainer.store import Memory, Run, Store, Transaction
from homeostat.trainer.triggers import Signals

logger = logging.getLogger(__name__)

POLL_MS = 100
TICK_SECONDS = 1.0
MAX_RECORDS = 5_000

Batches = Mapping[TopicPartition, Sequence[ConsumerRecord]]


class Consumer:
    """``snapshot`` is asked anew for every batch: the pipeline may change at any time."""

    def __init__(
        self,
        store: Store,
        snapshot: Callable[[], Snapshot],
        *,
        bootstrap_servers: str,
        wall: Clock,
        on_run: Callable[[], None],
    ) -> None:
        self._store = store
        self._snapshot = snapshot
        self._bootstrap_servers = bootstrap_servers
        self._wall = wall
        self._on_run = on_run

    async def consume(self) -> None:
        """Follow the pipeline's alerts and outcomes for ever."""
        pipeline = self._snapshot().pipeline.name
        names = [topic.of(pipeline) for topic in (topics.ALERTS, topics.OUTCOMES)]
        reader = kafka.consumer(
            *names, bootstrap_servers=self._bootstrap_servers, client_id="trainer"
        )
        await reader.start()
        try:
            await self._resume(reader, pipeline)
            ticked = time.monotonic()
            while True:
                batches = await reader.getmany(timeout_ms=POLL_MS, max_records=MAX_RECORDS)
                if batches or time.monotonic() - ticked > TICK_SECONDS:
                    await self._take(batches)
                    ticked = time.monotonic()
        finally:
            await reader.stop()

    async def _resume(self, reader: AIOKafkaConsumer, pipeline: str) -> None:
        """From where the last transaction ended; what Kafka's groups believe is not asked."""
        async with self._store.transaction() as transaction:
            positions = await transaction.positions(pipeline)
            begun = {
                (partition.topic, partition.partition): 0
                for partition in reader.assignment()
                if (partition.topic, partition.partition) not in positions
            }
            # A position of zero says: nothing is missed, though nothing has come yet.
            await transaction.advance_positions(pipeline, begun)
        for (topic, partition), offset in positions.items():
            if TopicPartition(topic, partition) in reader.assignment():
                reader.seek(TopicPartition(topic, partition), offset)

    async def _take(self, batches: Batches) -> None:
        snapshot = self._snapshot()
        pipeline = snapshot.pipeline.name
        alerts, outcomes = _signals(batches, pipeline)
        async with self._store.transaction() as transaction:
            memory = await transaction.memory(pipeline)
            clock = PipelineClock(self._wall)
            clock.observe(memory.clock)
            for records in batches.values():
                for record in records:
                    clock.observe(kafka.available_at(record.headers))
            run_id = await _step(
                transaction,
                snapshot,
                memory,
                Signals(alerts=tuple(alerts), outcomes=outcomes),
                clock=clock,
            )
            await transaction.advance_positions(
                pipeline,
                {
                    (partition.topic, partition.partition): records[-1].offset + 1
                    for partition, records in batches.items()
                },
            )
        if run_id is not None:
            self._on_run()


async def start_by_hand(store: Store, snapshot: Snapshot, reason: str, *, wall: Clock) -> Run:
    """Queue a run that a person asked for.

    Raises:
        Conflict: one is active.
    """
    pipeline = snapshot.pipeline.name
    async with store.transaction() as transaction:
        memory = await transaction.memory(pipeline)
        clock = PipelineClock(wall)
        clock.observe(memory.clock)
        run_id = await _step(transaction, snapshot, memory, Signals(by_hand=reason), clock=clock)
        run = await transaction.active_run(pipeline)
    if run_id is None or run is None:
        active = run.id if run else "unknown"
        raise Conflict(f"the run {active} is active", fix="wait for its end")
    return run


async def _step(
    transaction: Transaction,
    snapshot: Snapshot,
    memory: Memory,
    signals: Signals,
    *,
    clock: PipelineClock,
) -> str | None:
    """Decide on signals and store the decision; the id of the run that starts, if one does."""
    pipeline, now = snapshot.pipeline, clock.now_millis()
    step = triggers.step(
        memory.state,
        signals,
        now=now,
        training=pipeline.training,
        is_running=await transaction.active_run(pipeline.name) is not None,
    )
    await transaction.remember(
        pipeline.name, Memory(step.state, now if clock.is_replayed else None)
    )
    for kind, reason in step.absorbed:
        metrics.ABSORBED.labels(pipeline.name, kind, reason).inc()
    if step.start is None:
        return None
    run_id = (
        f"{pipeline.name}-{from_millis(now):%Y%m%dT%H%M%S}-{step.start.kind}-{secrets.token_hex(3)}"
    )
    await transaction.queue(run_id, snapshot, step.start, triggered_at=now)
    await transaction.audit(
        pipeline.name,
        "run_queued",
        at=now,
        evidence={
            "run": run_id,
            "kind": step.start.kind,
            "message": step.start.message,
            "alert": step.start.id,
        },
    )
    metrics.STARTED.labels(pipeline.name, step.start.kind).inc()
    logger.info("run queued", extra={"run": run_id, "trigger": step.start.message})
    return run_id


def _signals(batches: Batches, pipeline: str) -> tuple[list[Alert], int]:
    alerts: list[Alert] = []
    outcomes = 0
    for partition, records in batches.items():
        for record in records:
            try:
                if partition.topic == topics.ALERTS.of(pipeline):
                    alerts.append(msgspec.json.decode(record.value, type=Alert))
                else:
                    msgspec.json.decode(record.value, type=Outcome)
                    outcomes += 1
            except msgspec.DecodeError as error:
                metrics.UNDECODABLE.labels(partition.topic).inc()
                logger.error(
                    "record passed over: it cannot be read",
                    extra={
                        "topic": partition.topic,
                        "partition": partition.partition,
                        "offset": record.offset,
                        "error": str(error),
                    },
                )
    return sorted(alerts, key=lambda alert: alert.at), outcomes
