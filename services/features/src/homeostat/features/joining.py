"""What is sent of joined labels: outcomes for everybody, hops on the way of the events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from aiokafka import TopicPartition

from homeostat.common import kafka, topics
from homeostat.features.arrivals import Arrival
from homeostat.features.enrichment import partition_keys
from homeostat.features.hops import LabelHops
from homeostat.features.outcomes import Joined, joined_hops
from homeostat.features.partitions import Context
from homeostat.features.publisher import Outgoing, Sending, by_target


class JoinedRow(NamedTuple):
    """A joined label, and the record that brought the second of the two sides."""

    joined: Joined
    arrival: Arrival
    offset: int
    traceparent: str | None


class JoinedSender:
    """Turns joined labels into what is sent: outcomes, and hops behind their events."""

    def __init__(self, context: Context, source: TopicPartition) -> None:
        self._context = context
        self._source = source
        self._fields = context.view.pipeline.key_fields

    def send(self, rows: Sequence[JoinedRow], outputs: Sending) -> None:
        """The rows, in the order of their offsets."""
        outcomes = topics.OUTCOMES.of(self._context.pipeline)
        outputs[outcomes] += [self._outcome(row) for row in rows]
        # A correction changes no state.
        if first := [row for row in rows if row.joined.version == 1]:
            hops = joined_hops(
                [row.joined for row in first],
                fields=self._fields,
                places=[row.offset for row in first],
                traceparents=[row.traceparent for row in first],
            )
            self._send_hops(hops, outputs)

    def _outcome(self, row: JoinedRow) -> Outgoing:
        source = b"%d:%d" % (self._source.partition, row.offset)
        headers = row.arrival.headers(source, row.traceparent)
        headers.append((kafka.SOURCE_TOPIC, self._source.topic.encode()))
        outcome = row.joined.outcome(self._context.view.entities)
        return Outgoing(row.joined.id.encode(), outcome, headers)

    def _send_hops(self, hops: LabelHops, outputs: Sending) -> None:
        context, source = self._context, self._source
        key = context.view.pipeline.source.key
        outputs[topics.BY_KEY.of(context.pipeline)] += by_target(
            hops,
            partition_keys(hops.keys_of(key), hops.ids),
            context.partitions,
            lambda part: context.codec.encode_labels(part, source.topic, source.partition),
        )
