"""The label index in Redis: which event a label judges, and which labels wait for their event.

Both sides of the join, the consumer of events and the consumer of labels, come here with a whole
batch, and one of them is second: that one joins. Redis runs each script alone, so exactly one is;
and what it decided is kept with the label, so that a batch that is processed again after a crash
gets the same answers. A label's corrections reach the index in order, because labels are keyed by
event id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

import msgspec
from redis.asyncio import Redis

from homeostat.common.durations import whole_milliseconds
from homeostat.features.outcomes import IndexedEvent, Joined, KnownLabel
from homeostat.features.scripts import Script

CHUNK = 200  # ids a script call: Redis serves nobody else while it runs

# An id's hash: e event, s its source; n versions of its label, o offset of the last label record;
# and for version i: l{i} label, v{i} its value, p{i} its offset, j{i} which side joined it.
# What is given for all ids is one MessagePack argument: to pack each alone costs more than all else
# together. Redis knows its older form, without bytes: events and labels are JSON in it.
_INDEX_EVENTS = """
local answers, given = {}, cmsgpack.unpack(ARGV[2])
for i, key in ipairs(KEYS) do
  local source, event = given[i][1], given[i][2]
  local known = redis.call('HMGET', key, 's', 'n')
  local found = {}
  if known[1] == false then
    redis.call('HSET', key, 's', source, 'e', event)
    redis.call('PEXPIRE', key, ARGV[1])
  end
  if known[2] and (known[1] == false or known[1] == source) then
    found[1] = i
    for version = 1, tonumber(known[2]) do
      local side = redis.call('HGET', key, 'j' .. version)
      if known[1] == false then redis.call('HSET', key, 'j' .. version, 'event') end
      if side ~= 'label' then
        found[#found + 1] = version
        found[#found + 1] = redis.call('HGET', key, 'l' .. version)
      end
    end
  end
  if #found > 1 then answers[#answers + 1] = found end
end
return answers
"""
_INDEX_LABELS = """
local answers, given = {}, cmsgpack.unpack(ARGV[2])
for i, key in ipairs(KEYS) do
  local offset, value, label = given[i][1], given[i][2], given[i][3]
  local known = redis.call('HMGET', key, 'e', 'n', 'o')
  local versions = tonumber(known[2] or 0)
  if known[3] and offset <= tonumber(known[3]) then
    answers[i] = {'repeated'}
    for version = 1, versions do
      local at = redis.call('HMGET', key, 'p' .. version, 'j' .. version)
      if tonumber(at[1]) == offset then
        if at[2] == 'label' then
          answers[i] = {'joined', version, known[1]}
        elseif not at[2] then
          answers[i] = {'parked'}
        end
      end
    end
  elseif versions > 0 and redis.call('HGET', key, 'v' .. versions) == value then
    redis.call('HSET', key, 'o', offset)
    answers[i] = {'duplicate'}
  else
    local version = versions + 1
    redis.call('HSET', key, 'n', version, 'o', offset, 'l' .. version, label,
               'v' .. version, value, 'p' .. version, offset)
    if known[1] then
      redis.call('HSET', key, 'j' .. version, 'label')
      answers[i] = {'joined', version, known[1]}
    else
      answers[i] = {'parked'}
    end
    redis.call('PEXPIRE', key, ARGV[1])
  end
end
return answers
"""


class Fate(StrEnum):
    JOINED = "joined"
    PARKED = "parked"
    DUPLICATE = "duplicate"
    REPEATED = "repeated"  # joined by the event's side, or long dealt with


@dataclass(frozen=True)
class LabelAnswer:
    fate: Fate
    joined: Joined | None = None


class LabelIndex:
    """One pipeline's index; entries live for ``ttl``, a label's maturity and some grace."""

    def __init__(self, redis: Redis, pipeline: str, *, ttl: timedelta) -> None:
        self._prefix = f"idx:{pipeline}:"
        self._ttl = whole_milliseconds(ttl)
        self._index_events = Script(redis, _INDEX_EVENTS)
        self._index_labels = Script(redis, _INDEX_LABELS)

    async def add_events(
        self, ids: Sequence[str], sources: Sequence[str], events: Sequence[IndexedEvent]
    ) -> list[list[Joined]]:
        """Index events; for each, the labels that were waiting for it."""
        arguments = [(source, _text(event)) for source, event in zip(sources, events, strict=True)]
        joined: list[list[Joined]] = [[] for _ in ids]
        for first, answers in await self._run(self._index_events, ids, arguments):
            for place, *found in answers:
                row = first + place - 1
                joined[row] = [
                    Joined(ids[row], events[row], _decode_label(label), int(version))
                    for version, label in zip(found[::2], found[1::2], strict=True)
                ]
        return joined

    async def add_labels(
        self, ids: Sequence[str], offsets: Sequence[int], labels: Sequence[KnownLabel]
    ) -> list[LabelAnswer]:
        """Join labels with events that are here already, and park the others."""
        arguments = [
            (offset, repr(label.label), _text(label))
            for offset, label in zip(offsets, labels, strict=True)
        ]
        chunks = await self._run(self._index_labels, ids, arguments)
        answers = [answer for _, chunk in chunks for answer in chunk]
        return [
            _label_answer(name, label, answer)
            for name, label, answer in zip(ids, labels, answers, strict=True)
        ]

    async def _run(
        self, script: Script, ids: Sequence[str], arguments: Sequence[tuple[Any, ...]]
    ) -> list[tuple[int, list[Any]]]:
        """Run a script over all ids in one round trip: its answer by the chunk's first row."""
        keys = [self._prefix + name for name in ids]
        starts = range(0, len(ids), CHUNK)
        parts = [slice(first, first + CHUNK) for first in starts]
        answers = await script.run(
            [(keys[part], (self._ttl, _pack(arguments[part]))) for part in parts]
        )
        return list(zip(starts, answers, strict=True))


def _label_answer(name: str, label: KnownLabel, answer: list[Any]) -> LabelAnswer:
    fate = Fate(answer[0].decode())
    if fate is not Fate.JOINED:
        return LabelAnswer(fate)
    return LabelAnswer(fate, Joined(name, _decode_event(answer[2]), label, int(answer[1])))


def _text(value: IndexedEvent | KnownLabel) -> str:
    return _encode(value).decode()


_pack = msgspec.msgpack.Encoder().encode
_encode = msgspec.json.Encoder().encode
_decode_event = msgspec.json.Decoder(IndexedEvent).decode
_decode_label = msgspec.json.Decoder(KnownLabel).decode
