"""The whole system, started once for all tests that span services."""

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence

import httpx
import msgspec
import numpy as np
import pytest
import redis
import xgboost

from homeostat.cli.publishing import publish
from homeostat.cli.stack.credentials import SigningKeys
from homeostat.cli.testing import RunningSystem, retire_pipelines, running_system
from homeostat.common import artifacts, kafka, topics
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import Pipeline
from homeostat.common.schemas.models import (
    Artifact,
    Distribution,
    Golden,
    ModelVersion,
    Reference,
    VersionState,
)


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    with running_system(tmp_path_factory.mktemp("system")) as running:
        yield running


@pytest.fixture(scope="module")
def system(everything: RunningSystem) -> Iterator[RunningSystem]:
    """It again, for one module: what that has published is gone when the next one begins.

    Each pipeline costs every service some work, also without traffic.
    """
    yield everything
    asyncio.run(retire_pipelines(everything.addresses.kafka))


@pytest.fixture(scope="module")
def crowned(system: RunningSystem) -> Callable[[Pipeline], Pipeline]:
    """Publish a pipeline and crown a small model for it: enough for every path to answer."""

    def crown(pipeline: Pipeline) -> Pipeline:
        asyncio.run(_crown(system, pipeline))
        return pipeline

    return crown


async def _crown(system: RunningSystem, pipeline: Pipeline) -> None:
    await publish(pipeline, bootstrap_servers=system.addresses.kafka)
    view = FeatureView(pipeline)
    booster = _booster(view.feature_names)
    content = bytes(booster.save_raw("json"))
    digest = hashlib.sha256(content).hexdigest()
    with redis.Redis.from_url(system.redis_url) as store:
        store.set(artifacts.redis_key(digest), content)
    zeros = np.zeros((1, len(view.feature_names)), np.float32)
    version = ModelVersion(
        pipeline=pipeline.name,
        version=1,
        state=VersionState.APPROVED,
        created_at=0,
        available_at=0,
        cause="test",
        artifact=Artifact(digest, len(content), "redis"),
        features=view.feature_names,
        definition_hash=view.definition_hash,
        threshold=0.5,
        golden=Golden((tuple(zeros[0].tolist()),), (float(booster.inplace_predict(zeros)[0]),)),
        reference=Reference({}, Distribution((0.5,), (1, 1)), 0.5, {}),
    )
    signed = artifacts.sign(
        version, artifacts.load_private_key(SigningKeys.of(system.home).private)
    )
    producer = kafka.producer(system.addresses.kafka, client_id="test")
    await producer.start()
    try:
        await producer.send_and_wait(
            topics.MODEL_VERSIONS.of(), msgspec.json.encode(signed), f"{pipeline.name}/1".encode()
        )
    finally:
        await producer.stop()
    async with httpx.AsyncClient() as http:
        await _loaded(http, system.url("inference", f"/v1/pipelines/{pipeline.name}/models"))


async def _loaded(http: httpx.AsyncClient, address: str) -> None:
    async with asyncio.timeout(60):
        while True:
            response = await http.get(address)
            if response.status_code == 200:
                states = {model["state"]: model["reason"] for model in response.json()["models"]}
                assert "quarantined" not in states, states
                if "ready" in states:
                    return
            await asyncio.sleep(0.1)


def _booster(features: Sequence[str]) -> xgboost.Booster:
    generator = np.random.default_rng(7)
    values = generator.random((200, len(features)), np.float32)
    data = xgboost.DMatrix(values, values[:, 0] > 0.5, feature_names=list(features))
    return xgboost.train({"objective": "binary:logistic", "max_depth": 2, "seed": 7}, data, 3)
