"""Training sets hold what serving could have known, and nothing that came later."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from homeostat.common.errors import NotFound
from homeostat.common.feature_store.offline import (
    KnownFeatures,
    TrainingSet,
    features_known_at,
    table_path,
    training_set,
)
from homeostat.common.feature_store.point_in_time import KnownRows
from homeostat.common.schemas.labels import Outcome
from homeostat.common.schemas.vectors import VectorBatch

PIPELINE = "fraud"
DAY = 86_400_000
DEFINITION = "a" * 64
OUTCOMES = pa.schema(
    {
        "id": pa.string(),
        "label": pa.float64(),
        "event_time": pa.int64(),
        "available_at": pa.int64(),
        "version": pa.int32(),
    }
)


@dataclass(frozen=True)
class Vector:
    id: str
    at: int = DAY  # event time
    intake: int | None = None
    value: float = 1.0
    definition_hash: str = DEFINITION


@dataclass
class Store:
    """The tables of one pipeline, written as the features service writes them."""

    root: Path
    versions: dict[str, int] = field(default_factory=dict)

    def add(self, *vectors: Vector, feature: str = "amount") -> None:
        for offset, vector in enumerate(vectors):
            intake = vector.at if vector.intake is None else vector.intake
            batch = VectorBatch(
                definition_hash=vector.definition_hash,
                features=(feature,),
                ids=[vector.id],
                units=["u"],
                times=np.array([vector.at], np.int64),
                intakes=np.array([intake], np.int64),
                values=np.array([[vector.value]]),
                statuses=np.zeros((1, 1), np.uint8),
                is_scored=np.array([True]),
                entities={"card": ["c"]},
                partition=0,
                offsets=np.array([offset], np.int64),
                traceparents=[None],
            ).table()
            rows = pa.Table.from_batches([batch.replace_schema_metadata(None)])
            rows = rows.drop_columns([f"status:{feature}"])
            rows = rows.append_column("definition_hash", pa.array([vector.definition_hash]))
            rows = rows.append_column("source_partition", pa.array([0], pa.int32()))
            self._append("vectors", rows)

    def judge(self, *outcomes: Outcome) -> None:
        columns = {name: [getattr(each, name) for each in outcomes] for name in OUTCOMES.names}
        self._append("outcomes", pa.table(columns, schema=OUTCOMES))

    def _append(self, name: str, rows: pa.Table) -> None:
        path = table_path(self.root, PIPELINE, name)
        path.mkdir(parents=True, exist_ok=True)
        write_deltalake(path, rows, mode="append", schema_mode="merge")
        self.versions[name] = DeltaTable(path).version()

    def training_set(self, **arguments: Any) -> TrainingSet:
        defaults: dict[str, Any] = {
            "definition_hash": DEFINITION,
            "features": ("amount",),
            "versions": dict(self.versions),
            "as_of": 10 * DAY,
            "maturity": DAY,
            "absent": 0,
        }
        return training_set(self.root, pipeline=PIPELINE, **(defaults | arguments))

    def known_at(self, asked: Sequence[tuple[str | None, int]], **arguments: Any) -> KnownFeatures:
        defaults: dict[str, Any] = {
            "definition_hash": DEFINITION,
            "entity": "card",
            "features": ("amount",),
            "version": self.versions["vectors"],
        }
        return features_known_at(
            self.root,
            pipeline=PIPELINE,
            keys=[key for key, _ in asked],
            at=np.array([instant for _, instant in asked], np.int64),
            **(defaults | arguments),
        )

    def labels(self, **arguments: Any) -> dict[str, float]:
        found = self.training_set(**arguments)
        return dict(zip(found.ids, found.labels.tolist(), strict=True))


def outcome(name: str, label: float, *, available_at: int, version: int = 1) -> Outcome:
    return Outcome(
        name, label, event_time=DAY, available_at=available_at, entities={}, version=version
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path)
    made.judge()
    return made


def test_a_label_that_became_known_after_the_instant_does_not_appear(store: Store) -> None:
    store.add(Vector("a"), Vector("b"))
    store.judge(
        outcome("a", 1.0, available_at=5 * DAY), outcome("b", 1.0, available_at=5 * DAY + 1)
    )

    assert store.labels(as_of=5 * DAY) == {"a": 1.0, "b": 0.0}
    assert store.labels(as_of=5 * DAY, absent="drop") == {"a": 1.0}


def test_a_late_label_counts_from_when_it_is_known(store: Store) -> None:
    store.add(Vector("a"))
    store.judge(outcome("a", 1.0, available_at=8 * DAY))

    assert store.labels(as_of=7 * DAY) == {"a": 0.0}
    assert store.labels(as_of=8 * DAY) == {"a": 1.0}


def test_of_a_corrected_label_the_newest_known_version_counts(store: Store) -> None:
    store.add(Vector("a"))
    store.judge(
        outcome("a", 0.0, available_at=6 * DAY, version=2),
        outcome("a", 1.0, available_at=3 * DAY, version=1),
    )

    assert store.labels(as_of=5 * DAY) == {"a": 1.0}
    assert store.labels(as_of=6 * DAY) == {"a": 0.0}


def test_an_event_that_is_not_mature_takes_no_part_even_with_a_label(store: Store) -> None:
    store.add(Vector("old", at=8 * DAY), Vector("young", at=8 * DAY + 1))
    store.judge(outcome("young", 1.0, available_at=9 * DAY))

    assert store.labels(as_of=10 * DAY, maturity=2 * DAY) == {"old": 0.0}


def test_a_vector_that_arrived_after_the_instant_does_not_appear(store: Store) -> None:
    store.add(Vector("a", at=DAY, intake=9 * DAY))

    assert store.labels(as_of=9 * DAY - 1) == {}
    assert store.labels(as_of=9 * DAY) == {"a": 0.0}


def test_a_vector_that_was_emitted_twice_counts_once_as_first_seen(store: Store) -> None:
    store.add(Vector("a", intake=4 * DAY, value=2.0), Vector("a", intake=3 * DAY, value=1.0))

    found = store.training_set()

    assert list(found.ids) == ["a"]
    assert found.values.tolist() == [[1.0]]


def test_vectors_of_another_definition_are_left_out(store: Store) -> None:
    store.add(Vector("a"), Vector("b", definition_hash="b" * 64))

    assert store.labels() == {"a": 0.0}


def test_rows_come_in_the_order_of_events_and_then_ids(store: Store) -> None:
    store.add(Vector("c", at=2 * DAY), Vector("b"), Vector("a"))

    found = store.training_set()

    assert list(found.ids) == ["a", "b", "c"]
    assert found.times.tolist() == [DAY, DAY, 2 * DAY]


def test_missing_values_stay_missing(store: Store) -> None:
    store.add(Vector("a", value=float("nan")))

    assert np.isnan(store.training_set().values).tolist() == [[True]]


def test_the_same_versions_give_the_same_set_whatever_comes_later(store: Store) -> None:
    store.add(Vector("a"), Vector("b"))
    store.judge(outcome("a", 1.0, available_at=2 * DAY))
    versions = dict(store.versions)
    before = store.training_set(versions=versions)

    store.add(Vector("c"))
    store.judge(outcome("b", 1.0, available_at=2 * DAY))
    for name in versions:
        DeltaTable(table_path(store.root, PIPELINE, name)).optimize.compact()
        store.versions[name] = DeltaTable(table_path(store.root, PIPELINE, name)).version()

    assert store.training_set(versions=versions).digest == before.digest
    assert store.training_set().digest != before.digest
    assert store.labels() == {"a": 1.0, "b": 1.0, "c": 0.0}


def test_the_digest_tells_any_change(store: Store) -> None:
    store.add(Vector("a"), Vector("b", at=2 * DAY))
    store.judge(outcome("a", 1.0, available_at=2 * DAY))

    digests = {
        store.training_set().digest,
        store.training_set(as_of=2 * DAY - 1).digest,
        store.training_set(as_of=2 * DAY - 1, maturity=0).digest,
        store.training_set(absent="drop").digest,
    }

    assert len(digests) == 4


def test_a_store_without_tables_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="ask the features service to commit"):
        Store(tmp_path, {"vectors": 0, "outcomes": 0}).training_set()


def test_a_version_that_is_not_there_is_told_by_its_number(store: Store) -> None:
    store.add(Vector("a"))

    with pytest.raises(NotFound, match="version 99 of vectors"):
        store.training_set(versions={"vectors": 99, "outcomes": 0})


def test_a_feature_that_no_vector_has_had_yet_is_told_by_its_name(store: Store) -> None:
    store.add(Vector("a"))

    with pytest.raises(NotFound, match="speed"):
        store.training_set(features=("amount", "speed"))


def test_an_instant_gets_the_newest_vector_that_was_known_then(store: Store) -> None:
    store.add(
        Vector("a", at=2 * DAY, value=2.0),
        Vector("b", at=3 * DAY, intake=6 * DAY, value=3.0),
        Vector("c", at=1 * DAY, intake=5 * DAY, value=1.0),  # late: hides nothing
    )

    found = store.known_at([("c", DAY), ("c", 5 * DAY), ("c", 6 * DAY), ("d", 6 * DAY)])

    np.testing.assert_array_equal(found.values[:, 0], [np.nan, 2.0, 3.0, np.nan])
    never = KnownRows.NEVER
    assert found.event_times.tolist() == [never, 2 * DAY, 3 * DAY, never]


def test_an_instant_gets_nothing_of_another_definition_or_too_old(store: Store) -> None:
    store.add(Vector("a", value=1.0), Vector("b", at=2 * DAY, definition_hash="b" * 64))

    found = store.known_at([("c", 3 * DAY), ("c", 3 * DAY + 1)], max_age=2 * DAY)

    np.testing.assert_array_equal(found.values[:, 0], [1.0, np.nan])


def test_what_was_known_is_told_by_its_digest(store: Store) -> None:
    store.add(Vector("a"))
    version = store.versions["vectors"]
    before = store.known_at([("c", 5 * DAY)])
    store.add(Vector("b", at=2 * DAY, value=2.0))

    assert store.known_at([("c", 5 * DAY)], version=version).digest == before.digest
    assert store.known_at([("c", 5 * DAY)]).digest != before.digest
    assert store.known_at([("c", 4 * DAY)], version=version).digest != before.digest


def test_an_entity_without_vectors_is_told_by_its_name(store: Store) -> None:
    store.add(Vector("a"))

    with pytest.raises(NotFound, match="'shop'"):
        store.known_at([("c", DAY)], entity="shop")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("absent", [0, "drop"])
def test_the_join_equals_a_naive_one_over_random_histories(
    store: Store, seed: int, absent: Literal[0, "drop"]
) -> None:
    chance = random.Random(seed)
    vectors = [
        Vector(
            str(chance.randrange(12)),
            at=chance.randrange(10),
            intake=chance.randrange(20),
            value=chance.random(),
            definition_hash=chance.choice([DEFINITION, "b" * 64]),
        )
        for _ in range(20)
    ]
    outcomes = [
        outcome(str(name), float(chance.randrange(2)), available_at=chance.randrange(20), version=n)
        for name in range(14)
        for n in range(1, 1 + chance.randrange(4))
    ]
    store.add(*vectors)
    store.judge(*outcomes)
    as_of, maturity = 12, 4

    found = store.training_set(as_of=as_of, maturity=maturity, absent=absent)

    rows = zip(
        found.ids, found.times.tolist(), found.values[:, 0].tolist(), found.labels, strict=True
    )
    assert list(rows) == naive(vectors, outcomes, as_of=as_of, maturity=maturity, absent=absent)


def naive(
    vectors: Sequence[Vector],
    outcomes: Sequence[Outcome],
    *,
    as_of: int,
    maturity: int,
    absent: Literal[0, "drop"],
) -> list[tuple[str, int, float, float]]:
    first: dict[str, tuple[int, int, Vector]] = {}
    for place, each in enumerate(vectors):
        intake = each.at if each.intake is None else each.intake
        is_known = each.at + maturity <= as_of and intake <= as_of
        if is_known and each.definition_hash == DEFINITION:
            candidate = (intake, place, each)
            first[each.id] = min(first.get(each.id, candidate), candidate, key=lambda it: it[:2])
    labels: dict[str, Outcome] = {}
    for judged in outcomes:
        known = labels.get(judged.id)
        if judged.available_at <= as_of and (known is None or known.version < judged.version):
            labels[judged.id] = judged
    rows = [
        (name, vector.at, vector.value, labels[name].label if name in labels else 0.0)
        for name, (_, _, vector) in first.items()
        if absent == 0 or name in labels
    ]
    return sorted(rows, key=lambda row: (row[1], row[0]))
