"""A pipeline of its own for each test, records for its topics, and a writer on the real Kafka."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest
from aiokafka import AIOKafkaProducer

from homeostat.cli.testing import SessionStack
from homeostat.common import kafka, topics
from homeostat.common.assignment import Variant
from homeostat.common.health import Health
from homeostat.common.http import application
from homeostat.common.pipeline import Pipeline, Snapshot
from homeostat.common.schemas import ledger
from homeostat.common.schemas.labels import Outcome
from homeostat.common.schemas.ledger import LedgerBatch, Prediction
from homeostat.common.schemas.vectors import VectorBatch
from homeostat.features.offline import api
from homeostat.features.offline.writers import Writers
from homeostat.features.settings import Settings

PARTITIONS = 4
HOUR = 3_600_000

Start = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


def vectors(
    ids: Sequence[str],
    *,
    partition: int = 0,
    first: int = 0,
    features: tuple[str, ...] = ("amount_mean", "ratio"),
    definition_hash: str = "d" * 64,
    values: float = 1.5,
) -> VectorBatch:
    count = len(ids)
    times = np.arange(count, dtype=np.int64) * HOUR
    return VectorBatch(
        definition_hash=definition_hash,
        features=features,
        ids=list(ids),
        units=[f"unit-{name}" for name in ids],
        times=times,
        intakes=times + 5,
        values=np.full((count, len(features)), values),
        statuses=np.zeros((count, len(features)), np.uint8),
        is_scored=np.ones(count, np.bool_),
        entities={"card": [f"card-{name}" for name in ids]},
        partition=partition,
        offsets=np.arange(first, first + count, dtype=np.int64),
        traceparents=[None] * count,
        is_replayed=True,
    )


def prediction(name: str) -> Prediction:
    return Prediction(
        prediction_id=f"p-{name}",
        event_id=name,
        unit="unit",
        event_time=1,
        at=2,
        path=ledger.Path.REQUEST,
        is_primary=True,
        variant=Variant.CHAMPION,
        version=3,
        rollout="r",
        propensity=1.0,
        score=0.25,
        decision=False,
        vector=(1.0, None),
        statuses=(0, 2),
        definition_hash="d" * 64,
        entities={"card": "c1", "device": None},
    )


class Topics:
    """Sends records to the topics of one pipeline, each answered by the broker."""

    def __init__(self, pipeline: Pipeline, producer: AIOKafkaProducer) -> None:
        self._name = pipeline.name
        self._producer = producer

    async def send(
        self,
        topic: topics.Topic,
        value: bytes,
        *,
        partition: int = 0,
        available_at: int | None = None,
    ) -> None:
        headers = []
        if available_at is not None:
            headers.append((kafka.AVAILABLE_AT, str(available_at).encode()))
        await self._producer.send_and_wait(
            topic.of(self._name), value, key=b"k", partition=partition, headers=headers
        )

    async def send_vectors(self, batch: VectorBatch) -> None:
        for value in batch.encode():
            await self.send(topics.FEATURES, value, partition=batch.partition)

    async def send_outcome(self, outcome: Outcome, *, partition: int = 0) -> None:
        await self.send(topics.OUTCOMES, msgspec.json.encode(outcome), partition=partition)

    async def send_predictions(self, rows: Sequence[Prediction]) -> None:
        """The first as the request path writes it, the others as the stream path does."""
        await self.send(topics.PREDICTIONS, ledger.encode_row(rows[0]))
        for value in LedgerBatch.of(rows[1:]).encode():
            await self.send(topics.PREDICTIONS, value)


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline.model_validate(
        {
            "name": f"cards{secrets.token_hex(4)}",
            "owner": "tests",
            "source": {
                "id": "id",
                "time": "time",
                "key": "card",
                "label": {"field": "is_fraud", "delay": "1d", "maturity": "2d", "absent": 0},
            },
            "unit": "card",
            "fields": {"id": "string", "card": "string", "amount": "float"},
            "features": {
                "amount_mean": {
                    "entity": "card",
                    "aggregate": "mean(amount)",
                    "window": "sliding 30m",
                },
                "ratio": {"expression": "amount / amount_mean", "default": 1},
            },
        }
    )


@pytest.fixture
def settings(stack: SessionStack, tmp_path: Path) -> Settings:
    return Settings(
        kafka_bootstrap_servers=stack.kafka,
        offline_store_path=tmp_path / "offline",
        state_dir=tmp_path / "state",
        session_timeout=timedelta(seconds=2),
    )


@pytest.fixture
async def sender(pipeline: Pipeline, stack: SessionStack) -> AsyncIterator[Topics]:
    await kafka.ensure_topics(stack.kafka, topics.of_pipeline(pipeline))
    producer = kafka.producer(stack.kafka, client_id="tests")
    await producer.start()
    try:
        yield Topics(pipeline, producer)
    finally:
        await producer.stop()


@pytest.fixture
def start(pipeline: Pipeline, settings: Settings) -> Start:
    """Run the writer behind its endpoints; leaving the context is what SIGTERM does."""

    @asynccontextmanager
    async def running(**changes: object) -> AsyncIterator[httpx.AsyncClient]:
        writers = Writers(settings.model_copy(update=changes), lambda: True)
        writers.follow(pipeline.name, Snapshot(pipeline, 1))
        app = application(Health("features"))
        app.include_router(api.routes(lambda: writers))
        transport = httpx.ASGITransport(app)
        try:
            async with httpx.AsyncClient(
                transport=transport, base_url=f"http://features/v1/pipelines/{pipeline.name}"
            ) as client:
                yield client
        finally:
            await writers.stop()

    return running
