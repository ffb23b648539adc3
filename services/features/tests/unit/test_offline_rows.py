"""Records of a topic become rows that say where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from aiokafka import ConsumerRecord

from homeostat.common.assignment import Variant
from homeostat.common.schemas import ledger
from homeostat.common.schemas.labels import Outcome
from homeostat.common.schemas.ledger import LedgerBatch, Prediction
from homeostat.common.schemas.vectors import VectorBatch
from homeostat.features.offline import rows


def record(
    value: bytes | None,
    *,
    offset: int = 0,
    partition: int = 0,
    headers: Sequence[tuple[str, bytes]] = (),
) -> ConsumerRecord:
    return ConsumerRecord(
        "topic", partition, offset, 1_000, 0, b"key", value, None, 3, 0, tuple(headers)
    )


def batch(features: tuple[str, ...], *, definition_hash: str = "d", count: int = 1) -> VectorBatch:
    return VectorBatch(
        definition_hash=definition_hash,
        features=features,
        ids=[str(row) for row in range(count)],
        units=["u"] * count,
        times=np.zeros(count, np.int64),
        intakes=np.zeros(count, np.int64),
        values=np.full((count, len(features)), 0.1 + 0.2),
        statuses=np.full((count, len(features)), 3, np.uint8),
        is_scored=np.ones(count, np.bool_),
        entities={"card": ["c"] * count},
        partition=2,
        offsets=np.arange(count, dtype=np.int64),
        traceparents=[None] * count,
    )


def row(prediction_id: str, **changes: Any) -> Prediction:
    made = Prediction(
        prediction_id=prediction_id,
        event_id="e",
        unit="u",
        event_time=1,
        at=2,
        path=ledger.Path.STREAM,
        is_primary=True,
        variant=Variant.CHAMPION,
        version=1,
        rollout="r",
        propensity=1.0,
        score=0.5,
        decision=True,
        vector=(1.0,),
        statuses=(0,),
        definition_hash="d",
    )
    return msgspec.structs.replace(made, **changes)


def encoded(vectors: VectorBatch) -> bytes:
    (value,) = vectors.encode()
    return value


def test_an_event_is_kept_as_it_lies_on_the_topic() -> None:
    stamped = record(b'{"a": 1.50}', offset=4, partition=1, headers=[("available_at", b"9")])

    shaped = rows.events([stamped, record(None)])

    assert shaped.rows.to_pylist() == [
        {
            "value": '{"a": 1.50}',
            "key": "key",
            "partition": 1,
            "offset": 4,
            "appended_at": 1_000,
            "available_at": 9,
        },
        {
            "value": None,
            "key": "key",
            "partition": 0,
            "offset": 0,
            "appended_at": 1_000,
            "available_at": None,
        },
    ]


def test_vectors_keep_their_bits() -> None:
    shaped = rows.vectors([record(encoded(batch(("f",))))])

    assert shaped.rows.column("value:f").to_pylist() == [0.1 + 0.2]
    assert shaped.rows.column("status:f").to_pylist() == [3]
    assert shaped.rows.column("source_partition").to_pylist() == [2]


def test_vectors_of_two_definitions_share_a_table() -> None:
    old, new = batch(("f",)), batch(("f", "g"), definition_hash="e")

    shaped = rows.vectors([record(encoded(old)), record(encoded(new))])

    assert shaped.rows.column("definition_hash").to_pylist() == ["d", "e"]
    assert shaped.rows.column("value:g").to_pylist() == [None, 0.1 + 0.2]


def test_ledger_rows_of_both_paths_keep_their_order_and_origin() -> None:
    (arrow,) = LedgerBatch.of([row("c"), row("d", score=None, error="boom")]).encode()
    records = [
        record(ledger.encode_row(row("a")), offset=0),
        record(ledger.encode_row(row("b")), offset=1),
        record(arrow, offset=2),
        record(ledger.encode_row(row("e")), offset=3),
    ]

    shaped = rows.predictions(records)

    assert shaped.rows.column("prediction_id").to_pylist() == ["a", "b", "c", "d", "e"]
    assert shaped.rows.column("offset").to_pylist() == [0, 1, 2, 2, 3]
    assert shaped.rows.column("score").to_pylist() == [0.5, 0.5, 0.5, None, 0.5]


def test_outcomes_keep_every_correction() -> None:
    outcome = Outcome("a", 1.0, event_time=1, available_at=2, entities={"card": "c"}, version=2)

    shaped = rows.outcomes([record(msgspec.json.encode(outcome), offset=8)])

    (found,) = shaped.rows.to_pylist()
    assert found["version"] == 2
    assert found["entities"] == [("card", "c")]
    assert found["offset"] == 8


def test_what_is_not_of_the_topic_is_refused_by_its_place() -> None:
    foreign = pa.record_batch({"id": ["a"]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, foreign.schema) as writer:
        writer.write_batch(foreign)
    values = [b"", b"{}", b"noise", None, sink.getvalue().to_pybytes()]
    records = [record(value, offset=offset) for offset, value in enumerate(values)]

    for shape in (rows.vectors, rows.outcomes, rows.predictions):
        shaped = shape(records)
        assert [refusal.offset for refusal in shaped.refused] == [0, 1, 2, 3, 4]
        assert shaped.rows.num_rows == 0


def test_no_records_give_a_table_with_columns() -> None:
    for shape in (rows.events, rows.vectors, rows.outcomes, rows.predictions):
        assert shape([]).rows.num_rows == 0
        assert shape([]).rows.num_columns > 0
