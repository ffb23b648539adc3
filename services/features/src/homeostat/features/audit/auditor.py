"""The audit of one pipeline as a process of its own within the server: topics in, alerts out.

It keeps nothing: when it starts, or a server fails it, the sample is read from the beginning of the
log again. What was served before it started is not looked at.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from homeostat.common import kafka, topics
from homeostat.common.errors import HomeostatError, InvalidEvent
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.schemas.alerts import Alert, AlertKind, Cause, Finding
from homeostat.common.schemas.ledger import Prediction
from homeostat.common.schemas.vectors import VectorBatch
from homeostat.features.audit import metrics
from homeostat.features.audit.review import Audit, Doubt, Report
from homeostat.features.hops import HopCodec
from homeostat.features.settings import Settings

logger = logging.getLogger(__name__)

CLIENT_ID = "features-audit"
POLL_MILLIS = 200
POLL_RECORDS = 50  # a few at a time: reads are answered by the same process
FETCH_BYTES = 1_000_000
OPEN_SECONDS = 30.0
KEPT_REPORTS = 100
ALERT_SECONDS = 60.0  # between two alerts of one entity
MAX_BACKOFF_SECONDS = 30.0

_decode_prediction = msgspec.json.Decoder(Prediction).decode

FeaturesOf = Callable[[str, int], Sequence[str] | None]  # of a pipeline's model version


class Auditor:
    """Runs until stopped, and begins anew whenever Kafka fails it."""

    def __init__(self, view: FeatureView, settings: Settings, features_of: FeaturesOf) -> None:
        self.view = view
        self.audit: Audit | None = None  # of the present run
        self.reports: deque[Report] = deque(maxlen=KEPT_REPORTS)  # newest last
        self.problem: str | None = None
        self._settings = settings
        self._features_of = features_of
        self._alerted: dict[str, float] = {}  # by entity: monotonic seconds
        self._due: dict[str, Report] = {}  # by entity: to be alerted, also after a restart
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        name = self.view.pipeline.name
        self._task = asyncio.create_task(self._run(), name=f"audit {name}")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        backoff = 0.5
        name = self.view.pipeline.name
        while True:
            try:
                await self._follow()
            except (KafkaError, OSError, HomeostatError) as error:
                self.problem = repr(error)
                metrics.RESTARTS.labels(name).inc()
                logger.warning("audit begins anew", extra={"pipeline": name, "error": repr(error)})
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)
            except Exception as error:
                self.problem = repr(error)
                logger.critical("audit stopped", extra={"pipeline": name}, exc_info=error)
                raise

    async def _follow(self) -> None:
        pipeline, servers = self.view.pipeline, self._settings.kafka_bootstrap_servers
        definition = self.view.definition_hash
        for named in (topics.of_pipeline(pipeline), topics.of_definition(pipeline, definition)):
            await kafka.ensure_topics(servers, named)
        producer = kafka.producer(servers, client_id=CLIENT_ID)
        consumer = kafka.consumer(
            bootstrap_servers=servers,
            client_id=CLIENT_ID,
            max_partition_fetch_bytes=FETCH_BYTES,
        )
        try:
            await producer.start()
            await consumer.start()
            async with asyncio.timeout(OPEN_SECONDS):
                session = await _Session.open(self.view, self._settings, consumer, producer)
            self.audit, self.problem = session.audit, None
            while True:
                await self._look(session, consumer, producer)
        finally:
            await consumer.stop()
            await producer.stop()

    async def _look(
        self, session: _Session, consumer: AIOKafkaConsumer, producer: AIOKafkaProducer
    ) -> None:
        batches = await consumer.getmany(timeout_ms=POLL_MILLIS, max_records=POLL_RECORDS)
        reports, doubts = await asyncio.to_thread(
            session.take, batches, self._features_of, time.monotonic()
        )
        for doubt in doubts:
            place = session.log(doubt)
            ends = await consumer.end_offsets([place])
            session.audit.settle(doubt, ends[place])
        for report in reports:
            self.reports.append(report)
            self._due.setdefault(report.entity, report)
            logger.error(
                "served values are not what their log says",
                extra={
                    "pipeline": report.pipeline,
                    "entity": report.entity,
                    "key": report.key,
                    "path": report.path.value,
                    "event": report.event_id,
                    "features": [difference.feature for difference in report.differences],
                },
            )
        now = time.monotonic()
        for entity, report in [*self._due.items()]:
            if now - self._alerted.get(entity, -ALERT_SECONDS) >= ALERT_SECONDS:
                await _alert(report, producer, session.replayed_until)
                self._alerted[entity] = now
                del self._due[entity]


async def _alert(report: Report, producer: AIOKafkaProducer, replayed_until: int | None) -> None:
    """Publish the incident, and wait for the broker; under replay with the pipeline's instant."""
    stamp = [] if replayed_until is None else [(kafka.AVAILABLE_AT, b"%d" % replayed_until)]
    await producer.send_and_wait(
        topics.ALERTS.of(report.pipeline),
        msgspec.json.encode(alert_of(report, replayed_until or round(time.time() * 1000))),
        key=report.pipeline.encode(),
        headers=stamp,
    )


class _Session:
    """One reading of the topics, from the beginning of the log."""

    def __init__(self, view: FeatureView, settings: Settings, partitions: int) -> None:
        name = view.pipeline.name
        self.audit = Audit(
            view,
            partitions=partitions,
            share=settings.audit_share,
            max_keys=settings.audit_keys,
            max_rows=settings.audit_rows,
            patience=settings.audit_patience.total_seconds(),
        )
        self.replayed_until: int | None = None
        self._name = name
        self._codec = HopCodec(view)
        self._entities = {log: entity for entity, log in view.logs.items()}
        self._logs = view.logs
        self._vectors = topics.FEATURES.of(name)
        self._told: dict[tuple[str, ...], int] = {}

    @classmethod
    async def open(
        cls,
        view: FeatureView,
        settings: Settings,
        consumer: AIOKafkaConsumer,
        producer: AIOKafkaProducer,
    ) -> _Session:
        """Assign every partition: the logs from their beginning, what is served from now on."""
        name = view.pipeline.name
        logs = [*view.logs.values()]
        served = [topics.FEATURES.of(name), topics.PREDICTIONS.of(name)]
        places = {
            topic: [TopicPartition(topic, part) for part in await producer.partitions_for(topic)]
            for topic in (*logs, *served)
        }
        session = cls(view, settings, len(places[logs[0]]))
        consumer.assign([place for each in places.values() for place in each])
        begins = await _offsets(consumer.beginning_offsets, places, logs)
        for place, begin in begins.items():
            if begin > 0:
                session.audit.lost_head(session._entities[place.topic], place.partition)
        ends = await _offsets(consumer.end_offsets, places, served)
        for place, offset in (begins | ends).items():
            consumer.seek(place, offset)
        return session

    def log(self, doubt: Doubt) -> TopicPartition:
        return TopicPartition(self._logs[doubt.entity], doubt.partition)

    def take(
        self,
        batches: Mapping[TopicPartition, Sequence[ConsumerRecord]],
        features_of: FeaturesOf,
        now: float,
    ) -> tuple[list[Report], list[Doubt]]:
        """Take in what was read, and review what waits."""
        for place, records in batches.items():
            entity = self._entities.get(place.topic)
            for record in records:
                if entity is not None:
                    self._take_hops(entity, record)
                    continue
                available_at = kafka.available_at(record.headers)
                if available_at is not None:
                    self.replayed_until = max(self.replayed_until or 0, available_at)
                if place.topic == self._vectors:
                    self._take_vectors(record, now)
                else:
                    self._take_prediction(record, features_of, now)
        found = self.audit.review(now)
        self._tell()
        return found

    def _take_hops(self, entity: str, record: ConsumerRecord) -> None:
        try:
            sent = self._codec.decode(record.value or b"", record.offset)
        except InvalidEvent:  # the worker dead-letters it
            self.audit.skip_hops(entity, record.partition, record.offset)
            return
        self.audit.take_hops(entity, record.partition, record.offset, sent)

    def _take_vectors(self, record: ConsumerRecord, now: float) -> None:
        try:
            self.audit.take_vectors(VectorBatch.decode(record.value or b""), now)
        except InvalidEvent:
            logger.warning("not a vector batch", extra={"offset": record.offset})

    def _take_prediction(self, record: ConsumerRecord, features_of: FeaturesOf, now: float) -> None:
        value = record.value or b""
        if value[:1] != b"{":
            return  # of the stream path, whose vectors are looked at where they come from
        try:
            prediction = _decode_prediction(value)
        except msgspec.DecodeError:
            logger.warning("not a ledger row", extra={"offset": record.offset})
            return
        self.audit.take_prediction(prediction, features_of(self._name, prediction.version), now)

    def _tell(self) -> None:
        """Bring the instruments up to what was found."""
        for (entity, path, result), count in self.audit.results.items():
            labels = (self._name, entity, path.value, result.value)
            metrics.CHECKED.labels(*labels).inc(count - self._told.get(labels, 0))
            self._told[labels] = count
        for reason, count in self.audit.skipped.items():
            skipped = (self._name, reason.value)
            metrics.SKIPPED.labels(*skipped).inc(count - self._told.get(skipped, 0))
            self._told[skipped] = count
        for entity, histories in self.audit.histories.items():
            metrics.KEYS.labels(self._name, entity).set(len(histories))


async def _offsets(
    ask: Callable[[Sequence[TopicPartition]], Awaitable[dict[TopicPartition, int]]],
    places: Mapping[str, Sequence[TopicPartition]],
    names: Sequence[str],
) -> dict[TopicPartition, int]:
    return await ask([place for name in names for place in places[name]])


def alert_of(report: Report, at: int) -> Alert:
    """The incident that a report is: a fault, which holds promotions and never retrains."""
    names = [difference.feature for difference in report.differences]
    source = f"{report.pipeline}:{report.entity}:{report.key}:{report.event_id}:{report.at}:{names}"
    first = report.differences[0]
    return Alert(
        id=hashlib.blake2b(source.encode(), digest_size=16).hexdigest(),
        pipeline=report.pipeline,
        kind=AlertKind.SKEW,
        cause=Cause.DATA_FAULT,
        at=at,
        window_start=report.at,
        window_end=report.at,
        version=report.version or 0,
        findings=tuple(Finding(name, "values_that_differ", 1.0, 0.0, 1) for name in names),
        retrain=False,
        message=(
            f"{report.entity} {report.key!r} was served {first.feature} = {first.served.value} "
            f"({first.served.status}) by the {report.path.value} path; its log folds to "
            f"{first.refolded.value} ({first.refolded.status}): see /v1/pipelines/"
            f"{report.pipeline}/audit of the features service"
        ),
    )


def summary(auditor: Auditor) -> dict[str, Any]:
    """What the audit has found so far, for people; reports newest first."""
    found: dict[str, Any] = {
        "definition_hash": auditor.view.definition_hash,
        "problem": auditor.problem,
        "reports": [msgspec.to_builtins(report) for report in reversed(auditor.reports)],
    }
    if (audit := auditor.audit) is not None:
        found["keys"] = {name: len(each) for name, each in audit.histories.items()}
        found["waiting"] = audit.waiting
        found["skipped"] = dict(audit.skipped)
        found["checked"] = [
            {"entity": entity, "path": path, "result": result, "count": count}
            for (entity, path, result), count in sorted(audit.results.items())
        ]
    return found
