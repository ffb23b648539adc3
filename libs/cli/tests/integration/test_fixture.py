"""The servers that tests share."""

import asyncio
from pathlib import Path

import psycopg
import pytest
import redis
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from homeostat.cli.publishing import publish, published
from homeostat.cli.testing import SessionStack
from homeostat.common.pipeline import load


@pytest.mark.integration
async def test_kafka_takes_a_topic(stack: SessionStack) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic("fixture-takes-a-topic", 2, 1)])

        # Listed once the broker has heard of it from its controller, a moment later.
        async with asyncio.timeout(30):
            while True:
                if "fixture-takes-a-topic" in await admin.list_topics():
                    break
                await asyncio.sleep(0.05)
    finally:
        await admin.close()


@pytest.mark.integration
def test_redis_takes_a_key(stack: SessionStack) -> None:
    with redis.Redis.from_url(stack.redis_url) as client:
        client.set("fixture", "kept")

        assert client.get("fixture") == b"kept"


@pytest.mark.integration
def test_a_fresh_database_is_empty_and_its_own(stack: SessionStack) -> None:
    first, second = stack.fresh_database(), stack.fresh_database()

    with psycopg.connect(first) as connection:
        connection.execute("CREATE TABLE things (id int)")
    with psycopg.connect(second) as connection:
        count = connection.execute("SELECT to_regclass('things')").fetchone()

    assert count == (None,)


@pytest.mark.integration
def test_no_pipeline_of_a_test_module_is_left_to_the_next(stack: SessionStack) -> None:
    pipeline = load(Path(__file__).parents[4] / "pipelines/fraud/pipeline.yaml")
    asyncio.run(publish(pipeline, bootstrap_servers=stack.kafka))

    stack.retire_pipelines()

    assert asyncio.run(published(stack.kafka)) == {}
