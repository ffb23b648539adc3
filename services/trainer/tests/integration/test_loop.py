"""An alert comes in, a signed version goes out: on the real servers, with the real process."""

from __future__ import annotations

import hashlib
from pathlib import Path

import mlflow
import mlflow.artifacts
import msgspec
import numpy as np
import pytest
from mlflow import MlflowClient
from redis import Redis

from homeostat.cli.testing import audit_chain
from homeostat.common import artifacts, topics
from homeostat.common.schemas.alerts import Alert, AlertKind, Cause
from homeostat.common.schemas.audit import Record
from homeostat.common.schemas.labels import Outcome
from homeostat.common.schemas.models import VersionState
from homeostat.trainer.booster import Model

from .conftest import DAY, NOW, World, pipeline

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

COST = 600_000


def alert(world: World, *, number: int = 0, at: int = NOW, cause: Cause = Cause.COVARIATE) -> bytes:
    return msgspec.json.encode(
        Alert(
            id=f"alert-{number}",
            pipeline=world.name,
            kind=AlertKind.DATA_DRIFT,
            cause=cause,
            at=at,
            window_start=at - 1,
            window_end=at,
            version=1,
            findings=(),
            retrain=True,
            message="a has moved",
        )
    )


def digest_of(uri: str) -> str:
    path = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_an_alert_becomes_a_signed_version_that_reproduces_its_golden_scores(
    world: World,
) -> None:
    # given
    world.write()
    world.start()
    await world.apply(pipeline(world.name))
    outcome = Outcome("1-1", 1.0, NOW, NOW, {})
    await world.send(topics.OUTCOMES.of(world.name), "1-1", msgspec.json.encode(outcome))

    # when
    for number in range(100):
        await world.send(topics.ALERTS.of(world.name), world.name, alert(world, number=number))
    run = world.run_in("done", "refused", "failed")

    # then
    assert (run["state"], run["reason"], run["version"]) == ("done", "", 1)
    (version,) = await world.announced()
    assert version.state is VersionState.APPROVED
    assert version.cause == "drift: a has moved"
    assert (version.created_at, version.available_at) == (NOW, NOW + COST)
    content = Redis.from_url(world.stack.redis_url).get(
        artifacts.redis_key(version.artifact.sha256)
    )
    assert isinstance(content, bytes)
    artifacts.verify(version, content, world.key.public_key())
    rows = np.array(
        [[np.nan if x is None else x for x in row] for row in version.golden.vectors], float
    )
    assert np.isnan(rows).all(axis=1).any()
    assert Model(content).score(rows).tolist() == list(version.golden.scores)
    assert version.reference.metrics["roc_auc"] > 0.8
    assert version.training["judged_sha256"] != version.artifact.sha256
    assert len(world.get("/runs")["runs"]) == 1
    progress = world.until(
        lambda: (found := world.get("/progress"))["pending"] == [] and found, "nothing is pending"
    )
    assert progress["clock"] == NOW
    assert sum(progress["positions"][topics.ALERTS.of(world.name)].values()) == 100
    assert sum(progress["positions"][topics.OUTCOMES.of(world.name)].values()) == 1


async def test_decisions_are_a_chain_on_the_audit_topic(world: World) -> None:
    # given
    world.write()
    world.start()
    await world.apply(pipeline(world.name))

    # when
    world.post("/runs", {"cause": "first champion"})
    world.run_in("done")

    # then
    raw = await world.records(topics.AUDIT.of())
    records = [msgspec.json.decode(value, type=Record) for value in raw]
    queued, approved = [record for record in records if record.pipeline == world.name]
    assert (queued.action, approved.action) == ("run_queued", "approved")
    chain = await audit_chain(world.stack.kafka, approved)
    assert queued in chain
    assert [record.sequence for record in chain] == [*range(1, len(chain) + 1)]


async def test_a_run_that_is_killed_goes_on_and_comes_to_one_version(world: World) -> None:
    # given
    world.write()
    world.start()
    await world.apply(pipeline(world.name))
    await world.send(topics.ALERTS.of(world.name), world.name, alert(world))

    # when
    world.run_in("tuning")
    world.kill()
    world.start()
    run = world.run_in("done", "refused", "failed")

    # then
    assert (run["state"], run["version"], run["attempts"]) == ("done", 1, 2)
    assert world.commits == 1
    assert [version.version for version in await world.announced()] == [1]
    assert len(world.get("/runs")["runs"]) == 1


async def test_a_challenger_that_learned_from_wrong_labels_is_refused(world: World) -> None:
    # given
    world.write()
    world.start()
    await world.apply(pipeline(world.name))
    await world.at(NOW)
    world.post("/runs", {"cause": "first champion"})
    world.run_in("done")
    await world.crown(1)

    # when
    world.write(rows=6_000, seed=2, days=(0, 6), are_labels_wrong=True)
    world.write(rows=3_000, seed=3, days=(6, 8))
    await world.at(NOW + 10 * DAY)
    world.post("/runs", {"cause": "try again"})
    run = world.run_in("done", "refused", "failed")

    # then
    assert (run["state"], run["champion"], run["version"]) == ("refused", 1, None)
    assert run["reason"].startswith("beats the champion: improvement_lower is -")
    assert run["judged"]["figures"]["improvement"] < 0
    assert [version.version for version in await world.announced()] == [1]


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"TRAINER_TIME_LIMIT": "PT1S"}, "training took longer than 1 s"),
        ({"TRAINER_MEMORY_LIMIT_BYTES": "50000000"}, "more than 50000000 bytes of memory"),
    ],
    ids=["time", "memory"],
)
async def test_training_beyond_its_limits_is_ended_and_the_service_lives(
    world: World, limit: dict[str, str], reason: str
) -> None:
    # given
    world.write()
    world.start(**limit)
    await world.apply(pipeline(world.name))

    # when
    world.post("/runs", {"cause": "too much"})
    run = world.run_in("done", "refused", "failed")

    # then
    assert run["state"] == "failed"
    assert reason in run["reason"]
    assert world.get("/progress")["pending"] == []
    assert world.post("/runs", {"cause": "once more"}).status_code == 202
    assert world.post("/runs", {"cause": "beside it"}).status_code == 409


async def test_a_passed_challenger_waits_for_a_person_where_the_policy_says_so(
    world: World,
) -> None:
    # given
    world.write()
    world.start()
    spec = pipeline(world.name)
    manual = spec.policy.model_copy(update={"approval": "manual"})
    await world.apply(spec.model_copy(update={"policy": manual}))
    world.post("/runs", {"cause": "first champion"})
    world.run_in("done")

    # when
    answer = world.post("/versions/1/approve", {"by": "Ada", "comment": "looked at it"})

    # then
    assert (answer.status_code, answer.json()["state"]) == (200, "approved")
    world.until(lambda: not world.get("/progress")["pending"], "nothing is pending")
    for _ in range(2):  # the second one changes nothing
        again = world.post("/versions/1/approve", {"by": "Eve"})
        assert again.json()["available_at"] == answer.json()["available_at"]
    assert world.post("/versions/2/approve", {"by": "Ada"}).status_code == 404


async def test_mlflow_hears_of_a_version_after_everybody_else(
    world: World, mlflow_server: str
) -> None:
    # given
    world.mlflow = mlflow_server
    world.write()
    world.start()
    await world.apply(pipeline(world.name))

    # when
    world.post("/runs", {"cause": "first champion"})
    world.run_in("done")
    await world.crown(1)

    # then
    client = MlflowClient(mlflow_server)

    def mirrored() -> dict[str, str] | None:
        if not world.get("/versions")["versions"][0]["mlflow_version"]:
            return None
        aliases: dict[str, str] = client.get_registered_model(world.name).aliases
        return aliases if "champion" in aliases else None

    aliases = world.until(mirrored, "MLflow knows the champion")
    assert aliases == {"challenger": "1", "champion": "1"}
    (version,) = await world.announced()
    mirror = client.get_model_version(world.name, "1")
    assert mirror.tags["homeostat.version"] == "1"
    assert client.get_run(mirror.run_id or "").data.metrics["f1"] == version.reference.metrics["f1"]
    mlflow.set_tracking_uri(mlflow_server)
    assert digest_of(version.artifact.uri) == version.artifact.sha256
