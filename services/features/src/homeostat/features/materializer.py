"""Window rows into the online store: a write older than what is there changes nothing.

Each partition has a progress key beside its rows, (epoch, offset) of the fold that they show.
Script and compare are one step, so a worker that has lost its partition cannot write over its
successor. Where the progress is gone, the store has been wiped, and every row is due again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum

from redis.asyncio import Redis

from homeostat.common.feature_store.online import (
    Progress,
    decode_progress,
    encode_progress,
    row_key,
)
from homeostat.features.scripts import Call, Script

CHUNK = 200  # rows a script call: Redis serves nobody else while it runs

_WRITE = """
local stored = redis.call('GET', KEYS[1])
local epoch, offset, last = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if stored then
  local progress = cmsgpack.unpack(stored)
  if progress[1] > epoch or (progress[1] == epoch and progress[2] > offset) then return 0 end
  if last >= 0 and (progress[1] < epoch or progress[2] < last) then return 2 end
elseif last >= 0 then
  return 2
end
for i = 2, #KEYS do redis.call('SET', KEYS[i], ARGV[3 + i]) end
if ARGV[4] ~= '' then redis.call('SET', KEYS[1], ARGV[4]) end
return 1
"""


class Answer(IntEnum):
    OUTDATED = 0  # somebody has written a later fold: this worker's time is over
    WRITTEN = 1
    LOST = 2  # what was written before is gone


class Materializer:
    """Writes the rows of one partition, and its progress."""

    def __init__(
        self, redis: Redis, *, pipeline: str, definition_hash: str, entity: str, progress: bytes
    ) -> None:
        self._redis = redis
        self._key = (pipeline, definition_hash, entity)
        self._progress = progress
        self._script = Script(redis, _WRITE)
        self._last = -1  # offset of the last write; -1: none yet

    async def stored(self) -> Progress | None:
        """The progress that the store has, of whichever worker."""
        value: bytes | None = await self._redis.get(self._progress)  # type: ignore[assignment]  # not decoded
        return None if value is None else decode_progress(value)

    def start_over(self) -> None:
        """Expect nothing of the store: the next write brings every row."""
        self._last = -1

    async def write(self, rows: Mapping[str, bytes], progress: Progress) -> Answer:
        """Write rows, then the progress that they show; one round trip."""
        pipeline, definition, entity = self._key
        keys = [row_key(pipeline, definition, entity, key) for key in rows]
        values = list(rows.values())
        calls: list[Call] = []
        for first in range(0, max(len(keys), 1), CHUNK):
            is_last = first + CHUNK >= len(keys)
            arguments = (
                progress.epoch,
                progress.offset,
                self._last,
                encode_progress(progress) if is_last else b"",
                *values[first : first + CHUNK],
            )
            calls.append(((self._progress, *keys[first : first + CHUNK]), arguments))
        answers: Sequence[int] = await self._script.run(calls)
        answer = Answer(min(answers) if Answer.OUTDATED in answers else max(answers))
        self._last = progress.offset if answer is Answer.WRITTEN else -1
        return answer
