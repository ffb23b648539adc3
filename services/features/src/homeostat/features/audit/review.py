"""The audit of one pipeline as steps over records: histories in, served vectors in, findings out.

Each sampled key of each entity is looked at alone: its aggregates depend on nothing but what came
to that key, and on the event being scored. Pure but for the time that a caller passes.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import msgspec
import numpy as np

from homeostat.common.durations import whole_milliseconds
from homeostat.common.event_columns import event_hash
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.kafka import partition_of
from homeostat.common.schemas.ledger import Path, Prediction
from homeostat.common.schemas.vectors import VectorBatch
from homeostat.features.audit.histories import Histories, History, place_of_offset
from homeostat.features.audit.refolding import (
    Difference,
    Served,
    differences,
    expressed,
    refolded,
    within,
)
from homeostat.features.hops import EventHops, Hops, Sent

MAX_PENDING = 10_000
MAX_PREFIXES = 100  # of a key's history that a row may have held
SHOWN_HOPS = 50  # of a history, the newest, in a report


class Skip(StrEnum):
    """Why a served vector of a sampled key was not compared."""

    DEFINITION = "another_definition"
    MODEL = "unknown_model"
    DEGRADED = "degraded"  # the row could not be read; the answer said so
    INCOMPLETE = "history_incomplete"
    ABSENT = "event_not_in_log"
    OTHER_TIME = "event_has_another_time"
    QUEUE = "queue_full"


class Result(StrEnum):
    EQUAL = "equal"
    DIFFERENT = "different"


class Report(msgspec.Struct, frozen=True):
    """A vector that is not what its log says, with both inputs: what was served, what was folded.

    ``offset`` is where the log stood for the row that was read; null on the stream path, where the
    event's own place says it. ``history`` are the newest hops of the key, the event's own included.
    """

    pipeline: str
    definition_hash: str
    entity: str
    key: str
    path: Path
    event_id: str
    prediction_id: str | None
    version: int | None
    at: int  # epoch ms, of the values
    offset: int | None
    differences: tuple[Difference, ...]
    event: dict[str, Any] | None
    history: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class _Case:
    """One entity of one served vector."""

    entity: str
    key: str
    partition: int
    path: Path
    event_id: str
    at: int
    served: Served
    deadline: float  # monotonic seconds: until then the event may come
    offset: int | None = None
    prediction_id: str | None = None
    version: int | None = None
    settled_at: int | None = None  # the log's end when it was first found different


@dataclass(frozen=True)
class Doubt:
    """A case that is final once the log was read to its end of now."""

    entity: str
    partition: int
    case: _Case


class Audit:
    def __init__(
        self,
        view: FeatureView,
        *,
        partitions: int,
        share: float,
        max_keys: int,
        max_rows: int,
        patience: float,
    ) -> None:
        """``patience`` is how long (s) a scored event may take to come to the log."""
        self.histories: Mapping[str, Histories] = {
            entity: Histories(entity, share=share, max_keys=max_keys, max_rows=max_rows)
            for entity in view.entities
        }
        self.results: Counter[tuple[str, Path, Result]] = Counter()
        self.skipped: Counter[Skip] = Counter()
        self._view = view
        self._partitions = partitions
        self._patience = patience
        self._lateness = whole_milliseconds(view.pipeline.lateness)
        self._cases: deque[_Case] = deque()
        self._begins: dict[tuple[str, int], int | None] = {}  # epoch ms, of a log without its head

    @property
    def waiting(self) -> int:
        return len(self._cases)

    # What comes ----------------------------------------------------------------------------------

    def lost_head(self, entity: str, partition: int) -> None:
        """The partition of an entity's log does not begin with its first record."""
        self._begins[entity, partition] = None

    def take_hops(self, entity: str, partition: int, offset: int, sent: Sent) -> None:
        """Take in a record of an entity's log; records come in the order of their partition."""
        place = entity, partition
        if self._begins.get(place, 0) is None:
            # Whatever lay before it had happened by then, but for what came out of order.
            self._begins[place] = int(sent.hops.intakes.max()) + self._lateness
        self.histories[entity].take(partition, offset, sent)

    def skip_hops(self, entity: str, partition: int, offset: int) -> None:
        """Pass over a record that nobody can read."""
        self.histories[entity].skip(partition, offset)

    def take_vectors(self, batch: VectorBatch, now: float) -> None:
        """Take in what the stream emitted; ``now`` is monotonic, in seconds."""
        is_ours = batch.definition_hash == self._view.definition_hash
        for entity, keys in batch.entities.items():
            for row, key in enumerate(keys):
                if key is None or not self._is_chosen(entity, key):
                    continue
                if not is_ours:
                    self.skipped[Skip.DEFINITION] += 1
                    continue
                values, statuses = batch.values[row].tolist(), batch.statuses[row].tolist()
                self._add(
                    _Case(
                        entity=entity,
                        key=key,
                        partition=self._partition(key),
                        path=Path.STREAM,
                        event_id=batch.ids[row],
                        at=int(batch.times[row]),
                        served=Served(batch.features, values, statuses),
                        deadline=now + self._patience,
                    )
                )

    def take_prediction(
        self, prediction: Prediction, features: Sequence[str] | None, now: float
    ) -> None:
        """Take in a row of the request path; ``features`` are those of its model version."""
        if prediction.path is not Path.REQUEST:
            return
        for entity, key in prediction.entities.items():
            if key is None or not self._is_chosen(entity, key):
                continue
            if prediction.definition_hash != self._view.definition_hash:
                self.skipped[Skip.DEFINITION] += 1
            elif features is None or len(features) != len(prediction.vector):
                self.skipped[Skip.MODEL] += 1
            elif (offset := prediction.offsets.get(entity)) is None:
                self.skipped[Skip.DEGRADED] += 1
            else:
                values = [math.nan if value is None else value for value in prediction.vector]
                self._add(
                    _Case(
                        entity=entity,
                        key=key,
                        partition=self._partition(key),
                        path=Path.REQUEST,
                        event_id=prediction.event_id,
                        at=prediction.event_time,
                        served=Served(features, values, prediction.statuses),
                        deadline=now + self._patience,
                        offset=offset,
                        prediction_id=prediction.prediction_id,
                        version=prediction.version,
                    )
                )

    def _is_chosen(self, entity: str, key: str) -> bool:
        return entity in self.histories and self.histories[entity].is_chosen(key)

    def _add(self, case: _Case) -> None:
        if len(self._cases) >= MAX_PENDING:
            self._cases.popleft()
            self.skipped[Skip.QUEUE] += 1
        self._cases.append(case)

    def _partition(self, key: str) -> int:
        return partition_of(key.encode(), self._partitions)

    # What is found -------------------------------------------------------------------------------

    def review(self, now: float) -> tuple[list[Report], list[Doubt]]:
        """Compare what can be compared by now (monotonic seconds)."""
        reports: list[Report] = []
        doubts: list[Doubt] = []
        for _ in range(len(self._cases)):
            case = self._cases.popleft()
            found = self._look(case, now)
            if found is None:
                self._cases.append(case)
            elif isinstance(found, Report):
                reports.append(found)
            elif isinstance(found, Doubt):
                doubts.append(found)
        return reports, doubts

    def settle(self, doubt: Doubt, end: int) -> None:
        """Look at a case again when the log was read to ``end``: a row may be ahead of it."""
        self._add(replace(doubt.case, settled_at=end))

    def _look(self, case: _Case, now: float) -> Report | Doubt | Skip | Result | None:
        """What a case comes to; ``None``: it has to wait."""
        histories = self.histories[case.entity]
        if not histories.has_all(case.key):
            return self._skip(Skip.INCOMPLETE)
        needed = max(case.offset or 0, case.settled_at or 0)
        if histories.positions.get(case.partition, 0) < needed:
            return None
        history = histories.of(case.key) or History()
        own: EventHops | None = None
        prefixes = [place_of_offset(case.offset or 0)]
        if case.event_id:
            place = history.place_of(event_hash(case.event_id))
            if place is None:
                return None if now < case.deadline else self._skip(Skip.ABSENT)
            own = history.at(place)
            if int(own.columns.times[0]) != case.at:
                return self._skip(Skip.OTHER_TIME)
            prefixes = [place] if case.offset is None else prefixes
        if case.path is Path.REQUEST:
            # Rows are written before the offset that they reach is told.
            prefixes += [place + 1 for place in history.places_from(prefixes[0])[:MAX_PREFIXES]]
        return self._compare(case, history, own, prefixes)

    def _compare(
        self, case: _Case, history: History, own: EventHops | None, prefixes: Sequence[int]
    ) -> Report | Doubt | Skip | Result:
        view, entity = self._view, case.entity
        begins = self._begins.get((entity, case.partition))
        known = [
            name
            for name in within(view, entity, case.at, begins)
            if not case.served.is_dropped(view, name)
        ]
        has_expressions = own is not None and entity == view.entities[0]
        if not known and not (has_expressions and view.pipeline.expressions):
            return self._skip(Skip.INCOMPLETE)
        found: list[Difference] = []
        for number, prefix in enumerate(prefixes):
            hops = history.before(prefix)
            computed = refolded(view, entity, case.key, hops, at=case.at, own=own)
            different = differences(case.served, computed, known=known)
            if number == 0:
                found = different
            if not different:
                found = []
                break
        if own is not None and has_expressions:
            computed = expressed(view, case.served, own)
            found += differences(case.served, computed, known=tuple(computed))
        if not found:
            return self._count(case, Result.EQUAL)
        if case.path is Path.REQUEST and case.settled_at is None:
            return Doubt(entity, case.partition, case)
        self._count(case, Result.DIFFERENT)
        return self._report(case, history.before(prefixes[-1] + 1), own, found)

    def _report(
        self,
        case: _Case,
        history: Sequence[Hops],
        own: EventHops | None,
        found: Sequence[Difference],
    ) -> Report:
        hops = [hop for part in history for hop in _shown(part)]
        return Report(
            pipeline=self._view.pipeline.name,
            definition_hash=self._view.definition_hash,
            entity=case.entity,
            key=case.key,
            path=case.path,
            event_id=case.event_id,
            prediction_id=case.prediction_id,
            version=case.version,
            at=case.at,
            offset=case.offset,
            differences=tuple(found),
            event=None if own is None else _shown(own)[0],
            history=tuple(hops[-SHOWN_HOPS:]),
        )

    def _skip(self, reason: Skip) -> Skip:
        self.skipped[reason] += 1
        return reason

    def _count(self, case: _Case, result: Result) -> Result:
        self.results[case.entity, case.path, result] += 1
        return result


def _shown(hops: Hops) -> list[dict[str, Any]]:
    """Hops for people: events with their fields, labels with their events."""
    if not isinstance(hops, EventHops):
        return [
            {"place": place, "label_of": name, "time": time, "label": label}
            for place, name, time, label in zip(
                hops.places.tolist(),
                hops.ids,
                hops.times.tolist(),
                hops.labels.tolist(),
                strict=True,
            )
        ]
    columns = hops.columns
    return [
        {
            "place": place,
            "id": columns.ids[row],
            "time": int(columns.times[row]),
            **{name: texts[row] for name, texts in columns.strings.items()},
            **{name: _finite(numbers[row]) for name, numbers in columns.numbers.items()},
        }
        for row, place in enumerate(hops.places.tolist())
    ]


def _finite(value: np.float64) -> float | None:
    return float(value) if np.isfinite(value) else None
