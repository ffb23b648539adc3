"""The stream path: vectors off the feature topic, scored by the same models under the same
assignment.

A fetch is scored, written to the ledger, acknowledged, and only then committed. After a crash it
may be scored again: a prediction's id comes from the vector's position and the variant, so
consumers can tell.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError
from opentelemetry import trace

from homeostat.common import kafka, telemetry, topics
from homeostat.common.durations import whole_milliseconds
from homeostat.common.errors import InvalidEvent, TransientError
from homeostat.common.pipeline import ScoringPath
from homeostat.common.schemas.arrow import CONTENT_TYPE
from homeostat.common.schemas.rollouts import RolloutSnapshot
from homeostat.common.schemas.vectors import VectorBatch
from homeostat.inference.lanes import Assigner, lanes, score_lane
from homeostat.inference.models import Models
from homeostat.inference.pipelines import ServedPipeline

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
FETCH_MS = 100
MAX_MESSAGES = 64


@dataclass(eq=False)
class StreamScorer:
    """Consumes the feature topic of one pipeline for as long as it runs."""

    served: ServedPipeline
    models: Models
    bootstrap_servers: str
    session_timeout: timedelta
    positions: dict[str, int] = field(
        default_factory=dict
    )  # by partition: all below is in the ledger
    _assigner: Assigner | None = None
    _seen: dict[tuple[int, str, int], int] = field(default_factory=dict)
    _is_stopping: bool = False

    def __post_init__(self) -> None:
        name = self.served.name
        self._features = topics.FEATURES.of(name)
        self._predictions = topics.PREDICTIONS.of(name)
        self._group = f"inference-{name}"
        self._tracer = trace.get_tracer("homeostat.inference")

    def stop(self) -> None:
        """End after the batch in hand."""
        self._is_stopping = True

    async def run(self) -> None:
        while not self._is_stopping:
            try:
                await self._consume()
            except (KafkaError, OSError) as error:
                logger.warning(
                    "stream scoring interrupted, resuming from what is committed",
                    extra={"pipeline": self.served.name, "error": repr(error)},
                )
                await asyncio.sleep(RETRY_SECONDS)

    async def _consume(self) -> None:
        consumer = kafka.consumer(
            self._features,
            bootstrap_servers=self.bootstrap_servers,
            client_id="inference",
            group_id=self._group,
            session_timeout_ms=whole_milliseconds(self.session_timeout),
            heartbeat_interval_ms=whole_milliseconds(self.session_timeout / 4),
        )
        producer = kafka.producer(self.bootstrap_servers, client_id="inference-stream")
        try:
            await producer.start()
            await consumer.start()
            self._seen.clear()
            while not self._is_stopping:
                batches = await consumer.getmany(timeout_ms=FETCH_MS, max_records=64)
                for partition, records in batches.items():
                    await self._score(partition, records, producer)
                await self._commit(consumer, batches)
        finally:
            await consumer.stop()
            await producer.stop()

    async def _commit(
        self, consumer: AIOKafkaConsumer, batches: Mapping[TopicPartition, Sequence[ConsumerRecord]]
    ) -> None:
        if batches:
            await consumer.commit({tp: records[-1].offset + 1 for tp, records in batches.items()})
        assigned = {str(tp.partition): await consumer.position(tp) for tp in consumer.assignment()}
        self.positions = assigned

    async def _score(
        self,
        partition: TopicPartition,
        records: Sequence[ConsumerRecord],
        producer: AIOKafkaProducer,
    ) -> None:
        """Score the records of one fetch and see them acknowledged."""
        target = partition.partition % len(await producer.partitions_for(self._predictions))
        acknowledgements = [
            await producer.send(
                self._predictions,
                message,
                partition=target,  # predictions stand where their vectors stood
                headers=self._headers(),
            )
            for record in records
            for message in await self._ledger_messages(partition, record)
        ]
        await asyncio.gather(*acknowledgements)

    def _headers(self) -> list[tuple[str, bytes]]:
        headers = [("content-type", CONTENT_TYPE)]
        if self.served.clock.is_replayed:
            now = self.served.clock.now_millis()
            headers.append((kafka.AVAILABLE_AT, str(now).encode()))
        return headers

    async def _ledger_messages(
        self, partition: TopicPartition, record: ConsumerRecord
    ) -> list[bytes]:
        served = self.served
        try:
            vectors = VectorBatch.decode(record.value)
        except InvalidEvent as error:
            served.metrics.stream("undecodable", 1)
            logger.error(
                "a vector batch cannot be read",
                extra={
                    "topic": self._features,
                    "partition": partition.partition,
                    "offset": record.offset,
                    "error": error.detail,
                },
            )
            return []
        served.clock.observe(
            int(vectors.intakes.max()) if vectors.is_replayed and len(vectors) else None
        )
        fresh = self._wanted(partition.partition, vectors)
        if not len(fresh):
            return []
        rollout = await self._settled_rollout()
        if rollout is None:
            served.metrics.stream("no_model", len(fresh))
            return []
        self._assigner = (self._assigner or Assigner(rollout)).follow(rollout)
        with telemetry.process_batch(
            self._tracer,
            self._features,
            partition=partition.partition,
            group=self._group,
            traceparents=fresh.traceparents,
        ) as onward:
            return self._score_lanes(fresh, self._assigner, onward)

    def _wanted(self, partition: int, vectors: VectorBatch) -> VectorBatch:
        """The rows to score: fresh enough, and not emitted before by a worker that then crashed."""
        source = (partition, vectors.definition_hash, vectors.partition)
        is_new = vectors.offsets > self._seen.get(source, -1)
        chosen = np.flatnonzero(is_new & vectors.is_scored)
        if len(vectors):
            self._seen[source] = max(self._seen.get(source, -1), int(vectors.offsets.max()))
        count = self.served.metrics.stream
        count("duplicate", int((~is_new).sum()))
        count("stale", int((is_new & ~vectors.is_scored).sum()))
        return vectors if len(chosen) == len(vectors) else vectors.take(chosen)

    async def _settled_rollout(self) -> RolloutSnapshot | None:
        """The rollout, once its champion answers; ``None`` when there is no champion at all.

        Vectors wait on their topic for a champion that is still loading or out of reach.
        """
        name = self.served.name
        while True:
            rollout = self.models.rollout(name)
            if rollout is None or rollout.champion is None:
                return None
            await self.models.settled(name)
            try:
                self.models.champion(name)
            except TransientError:
                await self.models.changed()
            else:
                return self.models.rollout(name)

    def _score_lanes(
        self, vectors: VectorBatch, assigner: Assigner, traceparents: Sequence[str | None]
    ) -> list[bytes]:
        served = self.served
        now = served.clock.now_millis()
        at = vectors.intakes if vectors.is_replayed else np.full(len(vectors), now, np.int64)
        is_primary = served.pipeline.scoring is ScoringPath.STREAM
        messages: list[bytes] = []
        for lane in lanes(self.models, assigner, vectors.units, is_primary=is_primary):
            if not lane.takes(vectors):
                served.metrics.stream("foreign_definition", len(lane.rows))
                continue
            batch = score_lane(
                vectors,
                lane,
                assigner.rollout,
                view=served.views.get(vectors.definition_hash),
                traceparents=traceparents,
                at=at,
            )
            served.metrics.stream(lane.variant.value, len(batch))
            messages.extend(batch.encode())
        return messages


class Streams:
    """A stream scorer for each pipeline that is scored on its stream."""

    def __init__(
        self, models: Models, *, bootstrap_servers: str, session_timeout: timedelta
    ) -> None:
        self._models = models
        self._bootstrap_servers = bootstrap_servers
        self._session_timeout = session_timeout
        self._scorers: dict[str, StreamScorer] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def follow(self, name: str, served: ServedPipeline | None) -> None:
        """Start, update or end the scorer of a pipeline as its snapshot says."""
        scorer = self._scorers.get(name)
        if served is None or served.pipeline.scoring is not ScoringPath.STREAM:
            if scorer is not None:
                self._scorers.pop(name).stop()
        elif scorer is not None:
            scorer.served = served
        else:
            scorer = StreamScorer(
                served, self._models, self._bootstrap_servers, self._session_timeout
            )
            self._scorers[name] = scorer
            task = asyncio.create_task(scorer.run(), name=f"stream of {name}")
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def positions(self, name: str) -> dict[str, dict[str, int]]:
        """The next offset of each partition: everything below is in the ledger."""
        scorer = self._scorers.get(name)
        return {topics.FEATURES.of(name): scorer.positions} if scorer is not None else {}

    async def stop(self) -> None:
        for scorer in self._scorers.values():
            scorer.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A scorer ends when told to; one that breaks takes the service down to be restarted."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("stream scoring broke, stopping the service", exc_info=error)
            signal.raise_signal(signal.SIGTERM)
