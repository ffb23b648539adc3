"""A challenger that passes its checks and fails live, for the demo to see it rolled back."""

import hashlib
import json
from typing import Any

import httpx
import msgspec
import numpy as np
import redis.asyncio
import xgboost

from homeostat.cli.addresses import Addresses
from homeostat.cli.errors import CliError
from homeostat.cli.stack.credentials import SigningKeys
from homeostat.cli.stack.home import Home
from homeostat.cli.stack.plan import Plan
from homeostat.common import artifacts, kafka, topics
from homeostat.common.schemas.models import Artifact, Golden, ModelVersion, VersionState

VERSION = 999
CHANNEL = "channel_code"  # the model is broken for payments over the web alone


async def announce_broken_model(
    addresses: Addresses,
    pipeline: str,
    home: Home,
    http: httpx.AsyncClient,
) -> int:
    """Announce a signed, approved version whose score is not finite for web payments.

    Its golden vectors hold no web payment, so every check before traffic passes. Then somebody in a
    hurry promotes it past the shadow by hand. Returns its version.
    """
    champion = await _champion(addresses, pipeline, http)
    async with redis.asyncio.from_url(Plan.read(home).addresses(home)["REDIS_URL"]) as store:
        content = await store.get(artifacts.redis_key(champion.artifact.sha256))
        broken = _broken(champion, content)
        await store.set(artifacts.redis_key(hashlib.sha256(broken).hexdigest()), broken)
    now = (await _get(http, f"{addresses.urls['judge']}/v1/pipelines/{pipeline}/progress"))["clock"]
    version = msgspec.structs.replace(
        champion,
        version=VERSION,
        state=VersionState.APPROVED,
        created_at=now,
        available_at=now,
        cause="sabotage",
        artifact=Artifact(hashlib.sha256(broken).hexdigest(), len(broken), "redis"),
        golden=_golden(champion, broken),
    )
    version = artifacts.sign(version, artifacts.load_private_key(SigningKeys.of(home).private))
    producer = kafka.producer(addresses.kafka, client_id="demo")
    await producer.start()
    try:
        await producer.send_and_wait(
            topics.MODEL_VERSIONS.of(),
            msgspec.json.encode(version),
            f"{pipeline}/{VERSION}".encode(),
        )
    finally:
        await producer.stop()
    return VERSION


def _broken(champion: ModelVersion, content: bytes | str | None) -> bytes:
    """The champion with its first tree replaced: web payments reach a leaf that is not a number."""
    if content is None:
        raise CliError("the champion's file is not in Redis")
    document = json.loads(content)
    trees = document["learner"]["gradient_booster"]["model"]["trees"]
    parameters = trees[0]["tree_param"] | {"num_nodes": "3"}
    channel = champion.features.index(CHANNEL)
    trees[0] |= {
        "base_weights": [0.0, 0.0, 0.0],
        "default_left": [0, 0, 0],
        "left_children": [1, -1, -1],
        "right_children": [2, -1, -1],
        "parents": [2147483647, 0, 0],
        "loss_changes": [1.0, 0.0, 0.0],
        "split_conditions": [0.5, float("nan"), 0.0],
        "split_indices": [channel, 0, 0],
        "split_type": [0, 0, 0],
        "sum_hessian": [1.0, 1.0, 1.0],
        "tree_param": parameters,
    }
    return json.dumps(document).encode()


def _golden(champion: ModelVersion, broken: bytes) -> Golden:
    channel = champion.features.index(CHANNEL)
    vectors = tuple(
        tuple(1.0 if place == channel else value for place, value in enumerate(vector))
        for vector in champion.golden.vectors
    )
    booster = xgboost.Booster()
    booster.load_model(bytearray(broken))
    rows = np.array(
        [[np.nan if value is None else value for value in vector] for vector in vectors], np.float32
    )
    scores = booster.inplace_predict(rows, missing=np.nan)
    return Golden(vectors, tuple(float(score) for score in scores), champion.golden.tolerance)


async def _champion(addresses: Addresses, pipeline: str, http: httpx.AsyncClient) -> ModelVersion:
    rollout = await _get(http, f"{addresses.urls['judge']}/v1/pipelines/{pipeline}/rollout")
    view = kafka.CompactedView(
        topics.MODEL_VERSIONS,
        lambda value: msgspec.json.decode(value, type=ModelVersion),
        bootstrap_servers=addresses.kafka,
        client_id="demo",
    )
    await view.start()
    try:
        await view.caught_up()
        return view.values[f"{pipeline}/{rollout['champion']}"]
    finally:
        await view.stop()


async def _get(http: httpx.AsyncClient, address: str) -> dict[str, Any]:
    response = await http.get(address)
    response.raise_for_status()
    document: dict[str, Any] = response.json()
    return document
