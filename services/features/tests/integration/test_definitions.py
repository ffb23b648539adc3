"""A changed pipeline file: its features come from history, while the old ones go on answering."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgspec
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from redis.asyncio import Redis

from homeostat.cli.publishing import publish
from homeostat.common import topics
from homeostat.common.feature_store.online import all_keys
from homeostat.common.pipeline import AggregateSpec
from homeostat.common.schemas.models import (
    Artifact,
    Distribution,
    Golden,
    ModelVersion,
    Reference,
    VersionState,
)
from homeostat.common.schemas.rollouts import Phase, RolloutSnapshot

from .conftest import Rig
from .payments import some_events
from .serving_server import PATIENCE_SECONDS, Serving, serving

pytestmark = pytest.mark.integration


@pytest.fixture
def server(rig: Rig) -> Iterator[Serving]:
    """A server of the pipeline, which removes what nobody needs at once."""
    with serving(rig, FEATURES_DEFINITION_GRACE="PT0S") as running:
        yield running


async def served_by(rig: Rig, version: int) -> None:
    """Make a version that was trained on the rig's definition the champion."""
    digest, names = rig.view.definition_hash, rig.view.feature_names
    announced = ModelVersion(
        pipeline=rig.name,
        version=version,
        state=VersionState.APPROVED,
        created_at=0,
        available_at=0,
        cause="test",
        artifact=Artifact("", 0, "nowhere"),
        features=names,
        definition_hash=digest,
        threshold=0.5,
        golden=Golden((), ()),
        reference=Reference({}, Distribution((0.5,), (1, 1)), 0.5, {}),
    )
    rollout = RolloutSnapshot(rig.name, "r", version, 1, Phase.CHAMPION, champion=version)
    async with rig.producer() as producer:
        for topic, key, value in (
            (topics.MODEL_VERSIONS, f"{rig.name}/{version}", announced),
            (topics.ROLLOUTS, rig.name, rollout),
        ):
            await producer.send_and_wait(topic.of(), msgspec.json.encode(value), key.encode())


async def read(server: Serving, card: str) -> dict[str, Any]:
    answer = await asyncio.to_thread(server.read, {"entities": [{"card": card}]})
    assert answer.status_code == 200, answer.text
    features: dict[str, Any] = answer.json()["rows"][0]["features"]
    return features


async def until(is_so: Callable[[], Any], told: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not await is_so():
        assert time.monotonic() < deadline, told
        await asyncio.sleep(0.1)


async def test_a_new_feature_counts_history_while_models_go_on_with_the_old_ones(
    rig: Rig, server: Serving, redis: Redis
) -> None:
    await rig.send(server.events)
    await rig.drained()
    await served_by(rig, 1)
    most = AggregateSpec(entity="card", aggregate="max(amount)", window="sliding 1h")
    changed = rig.with_features(card_max_1h=most)

    await publish(changed.pipeline, bootstrap_servers=rig.stack.kafka)

    async def is_answered() -> bool:
        features = await read(server, "c1")
        assert features["card_count_1h"] == {"value": 2, "status": "present"}, features
        return "card_max_1h" in features

    await until(is_answered, "the new feature is answered")
    assert (await read(server, "c1"))["card_max_1h"] == {"value": 20, "status": "present"}

    # What is pinned goes on beside it, until the model is replaced by one of the new definition.
    await rig.send([{**server.events[0], "id": "e9", "amount": 40.0}])
    await changed.drained()
    await rig.drained()
    for one in (rig, changed):
        assert len(await one.vectors()) == 4
    assert (await read(server, "c1"))["card_max_1h"] == {"value": 40, "status": "present"}
    await served_by(changed, 2)

    async def is_removed() -> bool:
        return not await definition_topics(rig)

    await until(is_removed, "the old definition's topics go")
    await until(lambda: nothing_is_left(redis, rig), "and its rows")
    assert await definition_topics(changed)
    assert (await read(server, "c1"))["card_max_1h"]["value"] == 40


async def definition_topics(rig: Rig) -> set[str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=rig.stack.kafka)
    await admin.start()
    try:
        own = {name for name, _ in topics.of_definition(rig.pipeline, rig.view.definition_hash)}
        return own & set(await admin.list_topics())
    finally:
        await admin.close()


async def nothing_is_left(redis: Redis, rig: Rig) -> bool:
    pattern = all_keys(rig.name, rig.view.definition_hash)
    return [key async for key in redis.scan_iter(match=pattern, count=1_000)] == []


async def test_what_the_log_does_not_hold_any_more_comes_from_the_offline_store(
    rig: Rig, server: Serving
) -> None:
    await rig.send(some_events(300, seed=61, prefix="old-"))
    await rig.drained()
    await rig.label([(f"old-{number}", 1.0) for number in range(40)])
    await rig.drained()
    committed = f"{server.url}/v1/pipelines/{rig.name}/offline/commit"
    (await asyncio.to_thread(httpx.post, committed, timeout=60)).raise_for_status()
    log = topics.BY_KEY.of(rig.name)
    expired = await rig.read(log)
    await rig.expire(log)
    await rig.send(some_events(50, seed=62, prefix="new-"))
    await rig.drained()

    changed = rig.with_features(
        device_bad_1h=AggregateSpec(entity="device", aggregate="mean(label)", window="sliding 1h")
    )
    await publish(changed.pipeline, bootstrap_servers=rig.stack.kafka)

    async def is_filled() -> bool:
        return "device_bad_1h" in (await read(server, "c1"))

    await until(is_filled, "the new definition has caught up")
    await changed.drained()
    _, vectors = await changed.folded_anew(expired)
    assert len(vectors) == 350
    assert await changed.vectors() == vectors
