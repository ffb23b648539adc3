"""Lua scripts run many at a time, in one round trip.

redis-py's own script objects ask the server with every pipeline whether it knows the script: a
second round trip, and a tenth of what a batch costs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

Call = tuple[Sequence[Any], Sequence[Any]]  # keys, arguments


class Script:
    """A script that may be run again: after a restart of Redis some calls of a round trip may have
    been made already when the first unknown one fails."""

    def __init__(self, redis: Redis, source: str) -> None:
        self._redis = redis
        self._source = source
        self._digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    async def run(self, calls: Sequence[Call]) -> list[Any]:
        """The answer of each call, in order."""
        try:
            return await self._run(calls)
        except NoScriptError:
            await self._redis.script_load(self._source)
            return await self._run(calls)

    async def _run(self, calls: Sequence[Call]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for keys, arguments in calls:
            pipeline.evalsha(self._digest, len(keys), *keys, *arguments)
        answers: list[Any] = await pipeline.execute()
        return answers
