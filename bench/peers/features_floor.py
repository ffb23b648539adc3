"""The floor: aiokafka in batches and one decode a record; no windows, no state, no sinks."""

import asyncio

from aiokafka import AIOKafkaConsumer, TopicPartition
from counting import BROKER, TOPIC, Count
from orjson import loads

count = Count()


async def main():
    reader = AIOKafkaConsumer(bootstrap_servers=BROKER, max_partition_fetch_bytes=4_000_000)
    await reader.start()
    reader.assign([TopicPartition(TOPIC, 0)])
    await reader.seek_to_beginning()
    while True:
        for records in (await reader.getmany(timeout_ms=200, max_records=2_000)).values():
            for record in records:
                loads(record.value)
                count.one()


asyncio.run(main())
