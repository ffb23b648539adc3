"""Vectors in, ledger rows out: the scores of the stream path are those of a direct call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from homeostat.common import kafka, topics
from homeostat.common.pipeline import Pipeline
from homeostat.common.schemas.rollouts import Phase
from homeostat.common.schemas.vectors import VectorBatch

pytestmark = pytest.mark.integration

INTAKE = 1_700_000_000_000


def batch(
    version: Any, first: int, count: int, *, definition: str = "", partition: int = 0
) -> VectorBatch:
    random = np.random.default_rng(first)
    numbers = range(first, first + count)
    values = random.normal(20, 10, (count, len(version.features)))
    values[random.random(values.shape) < 0.1] = np.nan
    return VectorBatch(
        definition_hash=definition or version.definition_hash,
        features=version.features,
        ids=[f"e{n}" for n in numbers],
        units=[f"u{n % 97}" for n in numbers],
        times=np.arange(count) + INTAKE,
        intakes=np.arange(count) + INTAKE,
        values=values,
        statuses=np.zeros(values.shape, np.uint8),
        is_scored=np.arange(count) % 10 != 9,
        entities={"customer": [f"u{n % 97}" for n in numbers], "terminal": [None] * count},
        partition=partition,
        offsets=np.arange(first, first + count),
        traceparents=[None] * count,
        is_replayed=True,
    )


def send(world: Any, pipeline: str, *batches: VectorBatch) -> None:
    async def run() -> None:
        producer = kafka.producer(world.stack.kafka, client_id="test")
        await producer.start()
        try:
            for item in batches:
                for message in item.encode():
                    await producer.send_and_wait(
                        topics.FEATURES.of(pipeline), message, partition=item.partition
                    )
        finally:
            await producer.stop()

    asyncio.run(run())


def streamed(
    name: str, world: Any, server: Any, workshop: Any, make_pipeline: Callable[..., Pipeline]
) -> Pipeline:
    pipeline = make_pipeline(name, scoring="stream")
    world.publish(pipeline)
    world.announce(workshop.train(pipeline, 1))
    world.announce(workshop.train(pipeline, 2))
    world.decide(pipeline.name, 1, challenger=2, share=0.4, holdback=0.05, phase=Phase.CANARY)
    server.wait_for_champion(pipeline.name, 1)
    server.wait_for_state(pipeline.name, 2, "ready")
    return pipeline


def test_ledger_rows_equal_direct_scores_under_the_rollouts_assignment(
    world: Any, server: Any, workshop: Any, make_pipeline: Callable[..., Pipeline]
) -> None:
    pipeline = streamed("streamed", world, server, workshop, make_pipeline)
    rollout = world.decide(
        pipeline.name, 1, challenger=2, share=0.4, holdback=0.05, phase=Phase.CANARY
    )
    trained = {"champion": workshop.train(pipeline, 1), "challenger": workshop.train(pipeline, 2)}
    batches = [
        batch(trained["champion"].version, 0, 500),
        batch(trained["champion"].version, 500, 500, partition=1),
    ]
    foreign = batch(trained["champion"].version, 1000, 50, definition="0" * 64, partition=2)

    send(world, pipeline.name, *batches, foreign, batches[0])  # the first one twice

    ledger = world.ledger(pipeline.name, rows=900)
    vectors = {
        event_id: (values, unit)
        for item in batches
        for event_id, values, unit, is_scored in zip(
            item.ids, item.values, item.units, item.is_scored, strict=True
        )
        if is_scored
    }
    assert sorted(ledger.strings("event_id")) == sorted(vectors)
    rows = zip(
        ledger.strings("event_id"),
        ledger.strings("variant"),
        ledger.numbers("score").tolist(),
        strict=True,
    )
    for event_id, variant, score in rows:
        values, unit = vectors[event_id]
        assert variant == rollout.assign(unit)
        assert score == trained[variant].expected([values])[0]
    assert set(ledger.strings("path")) == {"stream"}
    assert all(ledger.batch.column("is_primary").to_pylist())
    server.wait_until(
        lambda: (
            server.metric(
                "inference_stream_vectors_total", outcome="duplicate", pipeline="streamed"
            )
            == 500
        )
    )
    assert server.metric(
        "inference_stream_vectors_total", outcome="stale", pipeline="streamed"
    ) == (50 + 50 + 5)
    assert (
        server.metric(
            "inference_stream_vectors_total", outcome="foreign_definition", pipeline="streamed"
        )
        == 45
    )


def test_progress_says_what_has_been_scored_on_the_pipelines_clock(
    world: Any, server: Any, workshop: Any, make_pipeline: Callable[..., Pipeline]
) -> None:
    pipeline = streamed("progressing", world, server, workshop, make_pipeline)
    url = f"{server.service.url}/v1/pipelines/{pipeline.name}/progress"

    send(world, pipeline.name, batch(workshop.train(pipeline, 1).version, 0, 100))

    server.wait_until(
        lambda: httpx.get(url).json()["positions"].get("progressing-features", {}).get("0") == 1
    )
    assert httpx.get(url).json()["clock"] == INTAKE + 99
    assert httpx.get(url).json()["pending"] == []
    assert len(world.ledger(pipeline.name, rows=90)) == 90


def test_after_a_crash_repeats_carry_the_same_ids(
    world: Any,
    workshop: Any,
    make_pipeline: Callable[..., Pipeline],
    start_server: Callable[..., Any],
) -> None:
    count = 20
    with start_server() as server:
        pipeline = streamed("crashed", world, server, workshop, make_pipeline)
        version = workshop.train(pipeline, 1).version
        send(world, pipeline.name, *(batch(version, n * 100, 100) for n in range(count)))
        world.ledger(pipeline.name, rows=90)
        server.service.kill()

    with start_server():
        ledger = world.ledger(pipeline.name, rows=count * 90, seconds=40)

    of_event = dict(zip(ledger.strings("event_id"), ledger.strings("prediction_id"), strict=True))
    assert len(of_event) == count * 90
    assert set(ledger.strings("prediction_id")) == set(of_event.values())
