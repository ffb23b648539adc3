"""One term of office: from taking over the kept state until the lease is lost.

Nothing that a term knows outlives it. On any trouble with Postgres or Kafka it ends, and the next
one starts from what was committed; so there is one way to recover, and it is used all the time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from homeostat.common import kafka, topics
from homeostat.common.clock import Clock, PipelineClock
from homeostat.common.pipeline import Pipeline, Snapshot
from homeostat.common.schemas.audit import Record
from homeostat.common.schemas.models import ModelVersion
from homeostat.router import judging, metrics
from homeostat.router.judge import telemetry
from homeostat.router.judge.telemetry import Gathered
from homeostat.router.judging import Command, Decision, Input, State, Telemetry, Tick
from homeostat.router.settings import JudgeSettings
from homeostat.router.store import Kept, Outgoing, Position, Store

logger = logging.getLogger(__name__)

CLIENT = "judge"
TRANSACTIONAL_ID = "homeostat-judge"  # one for all judges: Kafka fences whoever is not the last
DISCOVERY_SECONDS = 1.0
_FOLLOWED = (topics.PREDICTIONS, topics.OUTCOMES, topics.EXPOSURES, topics.ALERTS)
_encode = msgspec.json.Encoder().encode


class Term:
    def __init__(
        self,
        epoch: int,
        kept: Kept,
        *,
        store: Store,
        settings: JudgeSettings,
        pipelines: Mapping[str, Snapshot],
        versions: Mapping[str, ModelVersion],
        clock: Clock,
    ) -> None:
        self.epoch = epoch
        self._store = store
        self._settings = settings
        self._pipelines = pipelines
        self._versions = versions
        self._wall = clock
        self._states = kept.states
        self._offsets = kept.offsets
        self._chain = kept.chain
        self._unsent = list(kept.outbox)
        self._clocks: dict[str, PipelineClock] = {}
        self._busy = asyncio.Lock()
        self._producer: AIOKafkaProducer = kafka.producer(
            settings.kafka_bootstrap_servers,
            client_id=CLIENT,
            transactional_id=TRANSACTIONAL_ID,
        )
        self._reader: AIOKafkaConsumer = kafka.consumer(
            bootstrap_servers=settings.kafka_bootstrap_servers, client_id=CLIENT
        )
        self._admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
        self._assigned: dict[TopicPartition, tuple[str, topics.Topic]] = {}
        self._followed_topics: set[str] = set()
        self._discovers_at = 0.0
        for name, state in self._states.items():
            self._clock(name).observe(state.replayed_until)

    async def serve(self) -> None:
        """Judge until cancelled, or until something is away."""
        try:
            await self._admin.start()
            await kafka.ensure_topics(
                self._settings.kafka_bootstrap_servers,
                [(topic.of(), topic) for topic in topics.GLOBAL],
            )
            await self._producer.start()
            await self._reader.start()
            await self._announce()
            while True:
                await self._follow()
                batches = await self._reader.getmany(
                    timeout_ms=round(self._settings.tick.total_seconds() * 1000),
                    max_records=self._settings.max_cycle_records,
                )
                async with self._busy:
                    await self._judge(batches)
        finally:
            await self._reader.stop()
            await self._producer.stop()
            await self._admin.close()

    async def command(self, pipeline: str, command: Command) -> State:
        """Obey a person.

        Raises:
            Conflict: the state does not allow it.
        """
        async with self._busy:
            await self._apply({pipeline: [command]}, {})
            return self._states[pipeline]

    def state(self, pipeline: str) -> State:
        return self._states.get(pipeline) or State.empty(pipeline)

    def now(self, pipeline: str) -> int:
        return self._clock(pipeline).now_millis()

    def positions(self, pipeline: str) -> dict[str, dict[str, int]]:
        """Below these everything is judged, and what followed from it is with the broker."""
        names = {topic.of(pipeline) for topic in _FOLLOWED}
        found: dict[str, dict[str, int]] = {}
        for (topic, partition), offset in self._offsets.items():
            if topic in names:
                found.setdefault(topic, {})[str(partition)] = offset
        return found

    def pending(self, pipeline: Pipeline) -> list[dict[str, str]]:
        """What could be decided at this instant and is not yet, or not yet announced."""
        name = pipeline.name
        state, now = self.state(name), self.now(name)
        found = [
            {"kind": "verdict", "id": f"version {version.version}"}
            for version in self._due(name, state, now)
        ]
        if judging.step(state, Tick(), now, pipeline)[1]:
            found.append({"kind": "verdict", "id": state.rollout.id})
        found.extend(
            {"kind": "announcement", "id": str(record.id)}
            for record in self._unsent
            if record.pipeline == name
        )
        return found

    async def _announce(self) -> None:
        """Send what a predecessor could not, and every state once more under the new epoch."""
        await self._send()
        snapshots = [self._announcement(name, state) for name, state in self._states.items()]
        await self._commit({}, {}, [], snapshots)

    async def _follow(self) -> None:
        """Read the topics of every pipeline; those that do not exist yet are looked for again."""
        wanted = {
            topic.of(name): (name, topic) for name in self._pipelines for topic in _FOLLOWED
        } | {topics.ROLLOUT_TRIPS.of(): ("", topics.ROLLOUT_TRIPS)}
        if wanted.keys() == self._followed_topics or time.monotonic() < self._discovers_at:
            return
        self._discovers_at = time.monotonic() + DISCOVERY_SECONDS
        existing = set(await self._admin.list_topics()) & wanted.keys()
        if existing == self._followed_topics:
            return
        described = await self._admin.describe_topics(sorted(existing))
        assigned = {
            TopicPartition(topic["topic"], partition["partition"]): wanted[topic["topic"]]
            for topic in described
            for partition in topic["partitions"]
        }
        self._reader.assign(list(assigned))
        # Asked for all at once: one by one, a hundred pipelines took minutes.
        new = [at for at in assigned if (at.topic, at.partition) not in self._offsets]
        begins = await self._reader.beginning_offsets(new) if new else {}
        self._offsets |= {(at.topic, at.partition): offset for at, offset in begins.items()}
        for partition in assigned:
            self._reader.seek(partition, self._offsets[partition.topic, partition.partition])
        self._assigned = assigned
        self._followed_topics = existing

    async def _judge(self, batches: Mapping[TopicPartition, Sequence[Any]]) -> None:
        gathered, offsets = self._gather(batches)
        inputs: dict[str, list[Input]] = {}
        for name in self._pipelines:
            given: list[Input] = []
            if (found := gathered.get(name)) is not None:
                # What holds a promotion comes before the figures that would allow it.
                given += [*found.alerts, Telemetry(found.rows, found.exposures), *found.trips]
            state = self.state(name)
            given += self._due(name, state, self.now(name))
            if given or state.rollout.is_in_flight or state.rollout.queued:
                inputs[name] = given or [Tick()]
        await self._apply(inputs, offsets)

    def _gather(
        self, batches: Mapping[TopicPartition, Sequence[Any]]
    ) -> tuple[dict[str, Gathered], dict[Position, int]]:
        gathered: dict[str, Gathered] = defaultdict(Gathered)
        offsets: dict[Position, int] = {}
        for partition, records in batches.items():
            name, topic = self._assigned[partition]
            offsets[partition.topic, partition.partition] = records[-1].offset + 1
            metrics.CYCLE_RECORDS.labels(topic.template).inc(len(records))
            values = [record.value for record in records if record.value is not None]
            if topic is topics.ROLLOUT_TRIPS:
                for trip in telemetry.trips(partition.topic, values):
                    gathered[trip.pipeline].trips.append(trip)
                continue
            for record in records:
                self._clock(name).observe(kafka.available_at(record.headers))
            found = gathered[name]
            if topic is topics.PREDICTIONS and self.state(name).rollout.is_in_flight:
                found.rows += telemetry.ledger_rows(partition.topic, values)
            if topic is topics.ALERTS:
                found.alerts += telemetry.alerts(partition.topic, values)
            if topic is topics.EXPOSURES and self.state(name).rollout.is_in_flight:
                found.exposures += telemetry.exposures(partition.topic, values)
        return gathered, offsets

    def _due(self, pipeline: str, state: State, now: int) -> list[ModelVersion]:
        return sorted(
            (
                version
                for version in self._versions.values()
                if version.pipeline == pipeline and judging.is_due(state, version, now)
            ),
            key=lambda version: version.version,
        )

    async def _apply(
        self, inputs: Mapping[str, Iterable[Input]], offsets: Mapping[Position, int]
    ) -> None:
        """Step each pipeline, keep what has changed, and announce it."""
        changed: dict[str, State] = {}
        decided: list[tuple[str, int, Decision]] = []
        outgoing: list[Outgoing] = []
        for name, given in inputs.items():
            before, now = self.state(name), self.now(name)
            pipeline = self._pipelines[name].pipeline
            state, decisions = self._steps(before, given, now, pipeline)
            if state is not before:
                changed[name] = state
            if state.rollout.generation != before.rollout.generation:
                outgoing.append(self._announcement(name, state))
            decided += [(name, now, decision) for decision in decisions]
        if not (changed or offsets or decided):
            return
        records: list[Record] = []
        for name, now, decision in decided:
            evidence = {"reason": decision.reason, **decision.evidence}
            chain = self._chain.after(records[-1]) if records else self._chain
            record = chain.link(name, decision.action, now, evidence)
            records.append(record)
            outgoing.append(Outgoing(name, topics.AUDIT.of(), "router", _encode(record)))
        await self._commit(changed, offsets, records, outgoing)
        for name, _, decision in decided:
            metrics.DECISIONS.labels(name, decision.action).inc()
            logger.info(
                "decided",
                extra={"pipeline": name, "action": decision.action, "reason": decision.reason},
            )

    def _steps(
        self, state: State, given: Iterable[Input], now: int, pipeline: Pipeline
    ) -> judging.Step:
        decisions: list[Decision] = []
        clock = self._clock(pipeline.name)
        if clock.is_replayed and state.replayed_until != now:
            state = msgspec.structs.replace(state, replayed_until=now)
        for item in given:
            state, taken = judging.step(state, item, now, pipeline)
            decisions += taken
        return state, decisions

    async def _commit(
        self,
        states: Mapping[str, State],
        offsets: Mapping[Position, int],
        records: Sequence[Record],
        outgoing: Sequence[Outgoing],
    ) -> None:
        kept = await self._store.commit(
            self.epoch, states=states, offsets=offsets, records=records, outgoing=outgoing
        )
        self._states.update(states)
        if records:
            self._chain = self._chain.after(records[-1])
        self._unsent += kept
        await self._send()
        self._offsets.update(offsets)

    async def _send(self) -> None:
        """Send what waits in one Kafka transaction: a judge that was replaced is fenced here."""
        if not self._unsent:
            return
        sent = list(self._unsent)
        async with self._producer.transaction():
            for record in sent:
                await self._producer.send(record.topic, record.value, record.key.encode())
        await self._store.forget(self.epoch, sent)
        self._unsent.clear()

    def _announcement(self, pipeline: str, state: State) -> Outgoing:
        value = _encode(state.rollout.snapshot(self.epoch))
        return Outgoing(pipeline, topics.ROLLOUTS.of(), pipeline, value)

    def _clock(self, pipeline: str) -> PipelineClock:
        clock = self._clocks.get(pipeline)
        if clock is None:
            clock = self._clocks[pipeline] = PipelineClock(self._wall)
        return clock
