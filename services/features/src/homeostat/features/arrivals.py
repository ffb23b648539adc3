"""Records that come from outside, one event or label each, with what their headers say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from aiokafka import ConsumerRecord

from homeostat.common import kafka


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """What a record's headers say. One is made for every record: a dataclass costs a microsecond
    more."""

    intake: int  # epoch ms, the pipeline's clock
    available_at: bytes | None  # only of replayed records
    traceparent: str | None

    @classmethod
    def of(cls, record: ConsumerRecord) -> Arrival:
        if not record.headers:  # a third of what the others cost
            return cls(record.timestamp, None, None)
        headers: dict[str, bytes] = dict(record.headers)
        stamp = kafka.instant(headers.get(kafka.AVAILABLE_AT))
        parent = headers.get(kafka.TRACEPARENT)
        return cls(
            record.timestamp if stamp is None else stamp,
            None if stamp is None else b"%d" % stamp,
            parent.decode(errors="replace") if parent else None,
        )

    def headers(self, source: bytes, traceparent: str | None) -> list[tuple[str, bytes]]:
        """The headers of a record that comes from this one."""
        headers = [(kafka.SOURCE, source)]
        if traceparent is not None:
            headers.append((kafka.TRACEPARENT, traceparent.encode()))
        if self.available_at is not None:
            headers.append((kafka.AVAILABLE_AT, self.available_at))
        return headers


@dataclass(frozen=True)
class RawFetch:
    """A fetch of records that each hold one event or label."""

    records: Sequence[ConsumerRecord]
    arrivals: Sequence[Arrival]

    @classmethod
    def of(cls, records: Sequence[ConsumerRecord]) -> RawFetch:
        return cls(records, [Arrival.of(record) for record in records])

    @property
    def traceparents(self) -> Sequence[str | None]:
        return [arrival.traceparent for arrival in self.arrivals]

    @property
    def newest_intake(self) -> int:
        return max(arrival.intake for arrival in self.arrivals)

    @property
    def is_replayed(self) -> bool:
        return any(arrival.available_at is not None for arrival in self.arrivals)
