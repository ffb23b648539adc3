"""Records that come from outside, one event or label each, with what their headers say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from aiokafka import ConsumerRecord

from homeostat.common import kafka
from homeostat.common.event_columns import I64


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """What a record's headers say."""

    intake: int  # epoch ms, the pipeline's clock
    available_at: bytes | None  # only of replayed records
    traceparent: str | None

    @classmethod
    def of(cls, record: ConsumerRecord) -> Arrival:
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
    intakes: I64  # epoch ms, the pipeline's clock
    traceparents: Sequence[str | None]
    is_replayed: bool  # some of them, at least

    @classmethod
    def of(cls, records: Sequence[ConsumerRecord]) -> RawFetch:
        if not any(record.headers for record in records):  # most fetches under load
            stamps = np.array([record.timestamp for record in records], np.int64)
            return cls(records, stamps, [None] * len(records), is_replayed=False)
        arrivals = [Arrival.of(record) for record in records]
        return cls(
            records,
            np.array([arrival.intake for arrival in arrivals], np.int64),
            [arrival.traceparent for arrival in arrivals],
            any(arrival.available_at is not None for arrival in arrivals),
        )

    @property
    def newest_intake(self) -> int:
        return int(self.intakes.max())

    def arrival(self, row: int) -> Arrival:
        return Arrival.of(self.records[row])
