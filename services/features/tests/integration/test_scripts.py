"""A script runs whether the server knows it or not."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from homeostat.cli.testing import SessionStack
from homeostat.features.scripts import Script

pytestmark = pytest.mark.integration

ADD = "return redis.call('INCRBY', KEYS[1], ARGV[1])"


async def test_calls_answer_in_order_also_after_the_server_has_forgotten_the_script(
    stack: SessionStack,
) -> None:
    redis = Redis.from_url(stack.redis_url)
    try:
        await redis.delete("scripts-a", "scripts-b")
        script = Script(redis, ADD)

        first = await script.run([(["scripts-a"], [1]), (["scripts-b"], [10])])
        await redis.script_flush()
        second = await script.run([(["scripts-a"], [2])])
        third = await script.run([(["scripts-a"], [3]), (["scripts-b"], [20])])

        assert (first, second, third) == ([1, 10], [3], [6, 30])
    finally:
        await redis.aclose()
