"""The label index in Redis: which event a label judges, and which labels wait for their event.

Both sides of the join, the consumer of events and the consumer of labels, come here with a whole
batch, and one of them is second: that one joins. Redis runs each script alone, so exactly one is;
and what it decided is kept with the label, so that a batch that is processed again after a crash
gets the same answers. A label's corrections reach the index in order, because labels are keyed by
event id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

import msgspec
from redis.asyncio import Redis

from homeostat.common.durations import whole_milliseconds
from homeostat.common.event_columns import I64, EventColumns
from homeostat.features.outcomes import IndexedEvent, Joined, KnownLabel, indexed
from homeostat.features.scripts import Script

CHUNK = 200  # ids a script call: Redis serves nobody else while it runs

# An id has two keys below the index's own: `e:<id>` is the event, a MessagePack array of partition,
# offset, time, then name and value of each key field; `l:<id>` is the hash of its label: n
# versions, o offset of the last label record; for version i: l{i} label, v{i} its value, p{i} its
# offset, j{i} which side joined it. All that is given is one MessagePack argument, in columns: to
# pack each id's alone, keys among them, costs more than all else together. Redis knows its older
# form, without bytes: labels are JSON in it.
_INDEX_EVENTS = """
local ttl, given, answers = ARGV[1], cmsgpack.unpack(ARGV[2]), {}
local partition, ids, offsets, times, names, keys =
  given[1], given[2], given[3], given[4], given[5], given[6]
for i, id in ipairs(ids) do
  local event = {partition, offsets[i], times[i]}
  for c, name in ipairs(names) do
    local key = keys[c][i]
    if key then
      event[#event + 1] = name
      event[#event + 1] = key
    end
  end
  local at = KEYS[1] .. 'e:' .. id
  local is_first = redis.call('SET', at, cmsgpack.pack(event), 'NX', 'PX', ttl)
  local labels = KEYS[1] .. 'l:' .. id
  local versions = redis.call('HGET', labels, 'n')
  if versions and not is_first then
    local known = cmsgpack.unpack(redis.call('GET', at))
    if known[1] ~= partition or known[2] ~= offsets[i] then versions = false end
  end
  if versions then
    local found = {i}
    for version = 1, tonumber(versions) do
      local side = redis.call('HGET', labels, 'j' .. version)
      if is_first then redis.call('HSET', labels, 'j' .. version, 'event') end
      if side ~= 'label' then
        found[#found + 1] = version
        found[#found + 1] = redis.call('HGET', labels, 'l' .. version)
      end
    end
    if #found > 1 then answers[#answers + 1] = found end
  end
end
return answers
"""
_INDEX_LABELS = """
local ttl, given, answers = ARGV[1], cmsgpack.unpack(ARGV[2]), {}
local ids, offsets, values, texts = given[1], given[2], given[3], given[4]
for i, id in ipairs(ids) do
  local offset, value = offsets[i], values[i]
  local at, labels = KEYS[1] .. 'e:' .. id, KEYS[1] .. 'l:' .. id
  local event = redis.call('GET', at)
  local known = redis.call('HMGET', labels, 'n', 'o')
  local versions = tonumber(known[1] or 0)
  if known[2] and offset <= tonumber(known[2]) then
    answers[i] = {'repeated'}
    for version = 1, versions do
      local of = redis.call('HMGET', labels, 'p' .. version, 'j' .. version)
      if tonumber(of[1]) == offset then
        if of[2] == 'label' then
          answers[i] = {'joined', version, event}
        elseif not of[2] then
          answers[i] = {'parked'}
        end
      end
    end
  elseif versions > 0 and redis.call('HGET', labels, 'v' .. versions) == value then
    redis.call('HSET', labels, 'o', offset)
    answers[i] = {'duplicate'}
  else
    local version = versions + 1
    redis.call('HSET', labels, 'n', version, 'o', offset, 'l' .. version, texts[i],
               'v' .. version, value, 'p' .. version, offset)
    if event then
      redis.call('HSET', labels, 'j' .. version, 'label')
      redis.call('PEXPIRE', at, ttl)
      answers[i] = {'joined', version, event}
    else
      answers[i] = {'parked'}
    end
    redis.call('PEXPIRE', labels, ttl)
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
        self._key = f"idx:{{{pipeline}}}:"  # one slot of a cluster
        self._ttl = whole_milliseconds(ttl)
        self._index_events = Script(redis, _INDEX_EVENTS)
        self._index_labels = Script(redis, _INDEX_LABELS)

    async def add_events(
        self, events: EventColumns, *, fields: Sequence[str], partition: int, offsets: I64
    ) -> list[tuple[int, Joined]]:
        """Index events with their places; labels that were waiting, each with its event's row."""
        ids, places, times = events.ids, offsets.tolist(), events.times.tolist()
        keys = [events.strings[name] for name in fields]
        joined: list[tuple[int, Joined]] = []
        for first, answers in await self._run(
            self._index_events,
            len(ids),
            lambda part: (
                partition,
                ids[part],
                places[part],
                times[part],
                fields,
                [column[part] for column in keys],
            ),
        ):
            for number, *found in answers:
                row = first + number - 1
                event = indexed(events, row, fields)
                joined += [
                    (row, Joined(ids[row], event, _decode_label(label), int(version)))
                    for version, label in zip(found[::2], found[1::2], strict=True)
                ]
        return joined

    async def add_labels(
        self, ids: Sequence[str], offsets: Sequence[int], labels: Sequence[KnownLabel]
    ) -> list[LabelAnswer]:
        """Join labels with events that are here already, and park the others."""
        values = [repr(label.label) for label in labels]
        texts = [_encode(label).decode() for label in labels]
        chunks = await self._run(
            self._index_labels,
            len(ids),
            lambda part: (ids[part], offsets[part], values[part], texts[part]),
        )
        answers = [answer for _, chunk in chunks for answer in chunk]
        return [
            _label_answer(name, label, answer)
            for name, label, answer in zip(ids, labels, answers, strict=True)
        ]

    async def _run(
        self, script: Script, count: int, given: Callable[[slice], tuple[Any, ...]]
    ) -> list[tuple[int, list[Any]]]:
        """Run a script over all ids in one round trip: its answer by the chunk's first row."""
        starts = range(0, count, CHUNK)
        calls = [
            ((self._key,), (self._ttl, _pack(given(slice(first, first + CHUNK)))))
            for first in starts
        ]
        return list(zip(starts, await script.run(calls), strict=True))


def _label_answer(name: str, label: KnownLabel, answer: list[Any]) -> LabelAnswer:
    fate = Fate(answer[0].decode())
    if fate is not Fate.JOINED:
        return LabelAnswer(fate)
    return LabelAnswer(fate, Joined(name, _known_event(answer[2]), label, int(answer[1])))


def _known_event(packed: bytes) -> IndexedEvent:
    _partition, _offset, time, *keys = _unpack(packed)
    return IndexedEvent(time, dict(zip(keys[::2], keys[1::2], strict=True)))


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode
_encode = msgspec.json.Encoder().encode
_decode_label = msgspec.json.Decoder(KnownLabel).decode
