"""Topics in memory: ordered records of bytes, read by position as a broker would have them read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Record:
    """What a step sees of a record. Every topic has one partition."""

    key: bytes
    value: bytes
    offset: int
    available_at: int  # epoch ms, the pipeline's clock
    partition: int = 0


@dataclass(eq=False)
class _Topic:
    begin: int = 0  # offset of the first record that is still kept
    records: list[Record] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.begin + len(self.records)


@dataclass(eq=False)
class Reader:
    """One reader's position on one topic."""

    _topic: _Topic
    position: int

    @property
    def is_behind(self) -> bool:
        return self.position < self._topic.end

    def read(self, limit: int) -> Sequence[Record]:
        """The next records, at most ``limit``; none when everything is read."""
        first = self.position - self._topic.begin
        found = self._topic.records[first : first + limit]
        self.position += len(found)
        return found


class Log:
    """All topics of a simulation, each made when it is first named."""

    def __init__(self) -> None:
        self._topics: dict[str, _Topic] = {}

    def append(self, topic: str, value: bytes, *, available_at: int, key: bytes = b"") -> None:
        target = self._topic(topic)
        target.records.append(Record(key, value, target.end, available_at))

    def reader(self, topic: str) -> Reader:
        """A new reader, from the oldest record that is kept."""
        source = self._topic(topic)
        reader = Reader(source, source.begin)
        source.readers.append(reader)
        return reader

    def expire(self) -> None:
        """Let go of the records that every reader of their topic has read."""
        for topic in self._topics.values():
            read = min((reader.position for reader in topic.readers), default=topic.end)
            del topic.records[: read - topic.begin]
            topic.begin = read

    def _topic(self, name: str) -> _Topic:
        return self._topics.setdefault(name, _Topic())
