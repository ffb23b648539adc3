"""Requests of one pipeline and definition as columns: checked, parsed, ready to be evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from homeostat.common.errors import HomeostatError
from homeostat.common.event_columns import EventColumns
from homeostat.common.events import check_entity_keys
from homeostat.common.feature_store.reading import Lookup, blank_columns
from homeostat.inference.pipelines import ServedPipeline
from homeostat.inference.scoring import Features, Row


@dataclass(frozen=True)
class Frame:
    """Rows that can be read together; those that bring an event come first."""

    rows: list[int]  # of the batch
    lookup: Lookup


def frame_of(
    served: ServedPipeline,
    definition_hash: str,
    rows: Sequence[Row],
    members: Sequence[int],
    results: dict[int, Features | HomeostatError],
) -> Frame | None:
    """Check and parse; what cannot be read goes to ``results`` as its row's error."""
    try:
        view = served.view(definition_hash)
    except HomeostatError as error:
        results.update(dict.fromkeys(members, error))
        return None
    events: list[tuple[int, msgspec.Struct]] = []
    lookups: list[tuple[int, Mapping[str, str]]] = []
    for index in members:
        row = rows[index]
        try:
            if isinstance(row.input, bytes):
                event = served.contract.parse(row.input, now=row.now_millis)
                events.append((index, event.payload))
            elif isinstance(row.input, Mapping):
                check_entity_keys(row.input, view.entities)
                lookups.append((index, row.input))
        except HomeostatError as error:
            results[index] = error
    if not events and not lookups:
        return None
    read = served.contract.columns_of([payload for _, payload in events])
    columns = _joined(
        view.conformed(read, served.pipeline),
        blank_columns(view.pipeline, [rows[index].now_millis for index, _ in lookups]),
    )
    return Frame(
        rows=[index for index, _ in events] + [index for index, _ in lookups],
        lookup=Lookup(
            view=view,
            columns=columns,
            keys={
                entity: columns.strings[entity][: len(events)]
                + [keys.get(entity) for _, keys in lookups]
                for entity in view.entities
            },
            is_event=np.arange(len(columns)) < len(events),
        ),
    )


def _joined(first: EventColumns, second: EventColumns) -> EventColumns:
    if not len(second):
        return first
    if not len(first):
        return second
    return EventColumns(
        ids=first.ids + second.ids,
        times=np.concatenate([first.times, second.times]),
        strings={name: first.strings[name] + values for name, values in second.strings.items()},
        numbers={
            name: np.concatenate([first.numbers[name], values])
            for name, values in second.numbers.items()
        },
    )
