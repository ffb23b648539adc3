"""What is sent of joined labels: outcomes for everybody, hops to the entities that fold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from aiokafka import TopicPartition

from homeostat.common import kafka, topics
from homeostat.common.event_columns import event_hashes
from homeostat.features.arrivals import Arrival
from homeostat.features.hops import LabelHops
from homeostat.features.outcomes import Joined
from homeostat.features.partitions import Context
from homeostat.features.publisher import Outgoing, Sending, by_target


class JoinedRow(NamedTuple):
    """A joined label, and the record that brought the second of the two sides."""

    joined: Joined
    arrival: Arrival
    offset: int
    traceparent: str | None


class JoinedSender:
    """Turns joined labels into what is sent: outcomes, and hops to entities that fold them."""

    def __init__(self, context: Context, source: TopicPartition) -> None:
        view = context.view
        self._context = context
        self._source = source
        self._entities = [entity for entity in view.entities if view.folds[entity].uses_labels]

    def send(self, rows: Sequence[JoinedRow], outputs: Sending) -> None:
        """The rows, in the order of their offsets."""
        outcomes = topics.OUTCOMES.of(self._context.pipeline)
        outputs[outcomes] += [self._outcome(row) for row in rows]
        # A correction changes no state.
        first = [row for row in rows if row.joined.version == 1]
        for entity in self._entities:
            self._send_hops(
                entity, [row for row in first if entity in row.joined.event.entities], outputs
            )

    def _outcome(self, row: JoinedRow) -> Outgoing:
        source = b"%d:%d" % (self._source.partition, row.offset)
        headers = row.arrival.headers(source, row.traceparent)
        headers.append((kafka.SOURCE_TOPIC, self._source.topic.encode()))
        return Outgoing(row.joined.id.encode(), row.joined.outcome(), headers)

    def _send_hops(self, entity: str, rows: Sequence[JoinedRow], outputs: Sending) -> None:
        context, source = self._context, self._source
        hops = _label_hops(entity, rows)
        outputs[topics.BY_ENTITY.of(context.pipeline, entity)] += by_target(
            hops,
            [key.encode() for key in hops.keys],
            context.partitions[entity],
            lambda part: context.codec.encode_labels(part, source.topic, source.partition),
        )


def _label_hops(entity: str, rows: Sequence[JoinedRow]) -> LabelHops:
    ids = [row.joined.id for row in rows]
    return LabelHops(
        ids,
        event_hashes(ids),
        [row.joined.event.entities[entity] for row in rows],
        np.array([row.joined.event.time for row in rows], np.int64),
        np.array([row.joined.label.available_at for row in rows], np.int64),
        np.array([row.joined.label.label for row in rows], np.float64),
        np.array([row.offset for row in rows], np.int64),
        [row.traceparent for row in rows],
    )
