"""The audit beside a real worker: silent while all is well, and sure of a single wrong bit."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import msgspec
import numpy as np
import pytest
from redis.asyncio import Redis

from homeostat.common import topics
from homeostat.common.assignment import Variant
from homeostat.common.events import EventContract
from homeostat.common.feature_store import reading
from homeostat.common.feature_store.online import row_key
from homeostat.common.feature_store.reading import Lookup, OnlineRows, blank_columns
from homeostat.common.schemas.alerts import Alert, AlertKind
from homeostat.common.schemas.ledger import Path, Prediction, encode_row
from homeostat.features.audit.auditor import Auditor, summary
from homeostat.features.audit.review import Report, Result
from homeostat.features.settings import Settings

from .payments import some_events

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

ENTITIES = ("card", "terminal", "device")
PATIENCE_SECONDS = 60
# The worker as it is, but for the lowest bit of the first value of every vector.
ONE_BIT_OFF = """
from homeostat.features import agents, worker
right = agents.vector_batch
def wrong(view, hops, *, partition):
    batch = right(view, hops, partition=partition)
    batch.values[:, 0].view("int64")[:] ^= 1
    return batch
agents.vector_batch = wrong
worker.main()
"""


@asynccontextmanager
async def audited(rig: Any) -> AsyncIterator[Auditor]:
    """An auditor of every key of the rig's pipeline, from before anything is served."""
    settings = Settings(
        kafka_bootstrap_servers=rig.stack.kafka,
        audit_share=1.0,
        audit_patience=timedelta(seconds=30),
    )
    auditor = Auditor(rig.view, settings, lambda _pipeline, _version: rig.view.feature_names)
    auditor.start()
    try:
        await until(auditor, lambda: auditor.audit is not None)
        yield auditor
    finally:
        await auditor.stop()


async def all_seen(auditor: Auditor, path: Path, *, served: int) -> None:
    """Wait until so many values of entities, one a vector and key, were dealt with."""
    audit = auditor.audit
    assert audit is not None

    def is_seen() -> bool:
        checked = sum(n for (_, by, _), n in audit.results.items() if by is path)
        return checked + sum(audit.skipped.values()) >= served

    await until(auditor, is_seen)


async def until(auditor: Auditor, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, summary(auditor)
        await asyncio.sleep(0.05)


def checked(auditor: Auditor, path: Path, result: Result) -> int:
    assert auditor.audit is not None
    found = auditor.audit.results.items()
    return sum(count for (_, by, what), count in found if (by, what) == (path, result))


def keys_of(events: Sequence[dict[str, Any]]) -> int:
    return sum(event[name] is not None for event in events for name in ENTITIES)


async def predicted(rig: Any, redis: Redis, events: Sequence[dict[str, Any]]) -> list[Prediction]:
    """What the request path serves for events, and tells the ledger."""
    contract = EventContract(rig.pipeline)
    values = [json.dumps(event).encode() for event in events]
    columns = contract.parse_published_batch(values, [event["time"] for event in events]).columns
    return await served(rig, redis, columns, np.ones(len(columns), np.bool_))


async def served(rig: Any, redis: Redis, columns: Any, is_event: Any, **keys: Any) -> list[Any]:
    view = rig.view
    online = OnlineRows(partitions=4, stale_after=timedelta(hours=1))
    keys = keys or {entity: columns.strings[entity] for entity in view.entities}
    lookup = Lookup(view, columns, keys, is_event)
    places = online.places(lookup)
    answer = online.evaluate(lookup, places, await reading.fetch(redis, reading.wanted([places])))
    vectors = answer.vectors.values.astype(object)
    vectors[np.isnan(answer.vectors.values)] = None
    return [
        Prediction(
            prediction_id=f"p{row}",
            event_id=columns.ids[row],
            unit="u",
            event_time=int(columns.times[row]),
            at=int(columns.times[row]),
            path=Path.REQUEST,
            is_primary=True,
            variant=Variant.CHAMPION,
            version=1,
            rollout="",
            propensity=1.0,
            score=0.5,
            decision=False,
            vector=tuple(vectors[row].tolist()),
            statuses=tuple(answer.vectors.statuses[row].tolist()),
            definition_hash=view.definition_hash,
            entities={entity: column[row] for entity, column in keys.items()},
            offsets={
                entity: int(offsets[row])
                for entity, offsets in answer.offsets.items()
                if offsets[row] != reading.UNKNOWN_OFFSET
            },
        )
        for row in range(len(columns))
    ]


async def publish(rig: Any, predictions: Sequence[Prediction]) -> None:
    async with rig.producer() as producer:
        for prediction in predictions:
            await producer.send_and_wait(topics.PREDICTIONS.of(rig.name), encode_row(prediction))


async def test_all_that_a_worker_serves_folds_to_the_same_bits(rig: Any, redis: Redis) -> None:
    first, second, scored = (some_events(150, seed=n, prefix=f"{n}-") for n in range(3))
    async with audited(rig) as auditor:
        rig.start_worker()
        await rig.send(first)
        await rig.label([(event["id"], 1.0) for event in first[:50]])
        await rig.drained()
        before = await predicted(rig, redis, scored)  # their events come later
        rig.kill_workers()
        await rig.send([*second, *scored])
        rig.start_worker()
        await rig.drained()
        after = await predicted(rig, redis, scored[:50])  # their events are in the rows by now
        now = max(event["time"] for event in scored)
        keys = {"card": ["c1", "c2", "no"], "terminal": ["t1", None, None], "device": [None] * 3}
        alone = await served(
            rig, redis, blank_columns(rig.pipeline, [now] * 3), np.zeros(3, np.bool_), **keys
        )
        await publish(rig, [*before, *after, *alone])

        everything = [*first, *second, *scored]
        await all_seen(auditor, Path.STREAM, served=keys_of(everything))
        requests = keys_of([*scored, *scored[:50]]) + 4
        await all_seen(auditor, Path.REQUEST, served=requests)

        assert list(auditor.reports) == []
        assert auditor.audit is not None
        assert auditor.audit.skipped == {}
        assert checked(auditor, Path.STREAM, Result.EQUAL) >= keys_of(everything)
        assert checked(auditor, Path.REQUEST, Result.EQUAL) == requests


async def test_one_wrong_bit_in_the_online_store_is_found_with_both_inputs(
    rig: Any, redis: Redis
) -> None:
    events = some_events(200, seed=5)
    [scored] = some_events(1, seed=6, prefix="scored-")
    async with audited(rig) as auditor:
        rig.start_worker()
        await rig.send([*events, scored])
        await rig.drained()
        [right] = await predicted(rig, redis, [scored])
        await flip_a_bit(rig, redis, scored, right)
        [wrong] = await predicted(rig, redis, [scored])
        await publish(rig, [right, wrong])
        await all_seen(auditor, Path.REQUEST, served=2 * keys_of([scored]))
        alert = await alerted(rig)

    [report] = auditor.reports
    assert report.key == scored["card"]
    assert report.prediction_id == wrong.prediction_id
    assert report.event is not None
    assert report.event["id"] == scored["id"]
    for difference in report.differences:
        slot = rig.view.feature_names.index(difference.feature)
        assert difference.served.value == wrong.vector[slot]
        assert difference.refolded.value == right.vector[slot] != wrong.vector[slot]
    ids = {hop.get("id") for hop in report.history}
    assert ids <= {event["id"] for event in [*events, scored] if event["card"] == scored["card"]}
    assert alert.kind is AlertKind.SKEW
    assert not alert.retrain
    assert {finding.subject for finding in alert.findings} == {
        difference.feature for difference in report.differences
    }


async def test_one_wrong_bit_in_what_the_stream_emits_is_found(rig: Any) -> None:
    async with audited(rig) as auditor:
        rig.start_worker(program=ONE_BIT_OFF)
        await rig.send(some_events(20, seed=7))
        await rig.drained()
        await until(auditor, lambda: bool(auditor.reports))

    report: Report = auditor.reports[0]
    assert report.path is Path.STREAM
    assert "card_mean_30m" in {difference.feature for difference in report.differences}


async def flip_a_bit(rig: Any, redis: Redis, event: dict[str, Any], right: Prediction) -> None:
    """Flip one bit of the card's row that changes what is read and leaves the row well-formed."""
    key = row_key(rig.name, rig.view.definition_hash, "card", event["card"])
    row = await redis.get(key)
    assert isinstance(row, bytes)
    for bit in reversed(range(len(row) * 8)):
        damaged = bytearray(row)
        damaged[bit // 8] ^= 1 << bit % 8
        await redis.set(key, bytes(damaged))
        [now] = await predicted(rig, redis, [event])
        values = zip(now.vector, right.vector, now.statuses, right.statuses, strict=True)
        if all(s == t for _, _, s, t in values) and now.vector != right.vector:
            return
    raise AssertionError("every bit matters to the form of a row")


async def alerted(rig: Any) -> Alert:
    async with asyncio.timeout(30):
        while True:
            records = await rig.read(topics.ALERTS.of(rig.name))
            values = [record.value for each in records.values() for record in each]
            if values:
                return msgspec.json.decode(values[0], type=Alert)
