"""A Kafka client on the services' event loop, through the end of its connection."""

import asyncio

import pytest
import uvloop
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest

from homeostat.cli.testing import SessionStack
from homeostat.common import kafka
from homeostat.common.topics import PIPELINES

pytestmark = pytest.mark.integration


async def send_into_the_end(bootstrap_servers: str) -> None:
    topic = PIPELINES.of()
    partition = TopicPartition(topic, 0)
    await kafka.ensure_topics(bootstrap_servers, [(topic, PIPELINES)])
    client = kafka.consumer(bootstrap_servers=bootstrap_servers, client_id="test")
    async with asyncio.timeout(30), client:
        client.assign([partition])
        await client.end_offsets([partition])
        (connection,) = client._client._conns.values()
        connection._writer.transport.abort()
        await asyncio.sleep(0)  # now the transport is closed, and aiokafka does not know
        assert connection._writer is not None

        with pytest.raises(KafkaConnectionError, match="broken"):
            await connection.send(MetadataRequest(None))

        assert await client.end_offsets([partition])  # over a new connection


def test_a_request_into_a_broken_connection_is_an_error_of_kafka(stack: SessionStack) -> None:
    uvloop.run(send_into_the_end(stack.kafka))
