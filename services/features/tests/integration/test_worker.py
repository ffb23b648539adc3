"""A real worker on real servers: what it folds, and what no crash may change."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from typing import Any

import msgspec
import numpy as np
import pytest
from redis.asyncio import Redis

from homeostat.common import kafka, topics
from homeostat.common.pipeline.spec import AggregateSpec, ExpressionSpec
from homeostat.common.schemas.labels import Outcome
from homeostat.features.enrichment import Counter
from homeostat.features.hops import HopCodec, LabelHops
from homeostat.features.progress import EVENTS
from homeostat.features.supervision import Role
from homeostat.features.worker import CRASHED

from .payments import some_events

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


async def equals_the_oracle(rig: Any) -> None:
    """Whatever was sent and committed, once the workers have left."""
    assert set(rig.stop_workers()) <= {0}
    rows, vectors = await rig.folded_anew()
    assert await rig.vectors() == vectors
    for entity, expected in rows.items():
        assert await rig.state_rows(entity) == expected


async def books_balance(rig: Any, *, received: int) -> None:
    counters = await rig.counters()
    settled = (
        Counter.TOO_LATE,
        Counter.DEAD,
        Counter.DUPLICATE,
        Counter.ON_TIME,
        Counter.LATE_MERGED,
    )
    assert counters[Counter.RECEIVED] == received
    assert sum(counters[fate] for fate in settled) == received


async def test_events_become_vectors_that_a_direct_fold_gives_too(rig: Any) -> None:
    rig.start_worker()

    await rig.send(some_events(500, seed=1))
    await rig.drained()

    assert len(await rig.vectors()) == 500
    await equals_the_oracle(rig)
    await books_balance(rig, received=500)


async def test_without_any_aggregate_events_pass_their_key_once(open_rig: Any, cards: Any) -> None:
    features = {"amount_paid": ExpressionSpec(expression="amount", default=0.0)}
    rig = await asyncio.to_thread(open_rig, cards.model_copy(update={"features": features}))
    events = some_events(100, seed=12)
    rig.start_worker()

    await rig.send([*events, *events])
    await rig.drained()

    vectors = (await rig.vectors()).values()
    paid = sorted(float(np.frombuffer(vector.values)[0]) for vector in vectors)
    assert paid == sorted(event["amount"] for event in events)
    await equals_the_oracle(rig)
    await books_balance(rig, received=200)


async def test_an_input_without_traffic_does_not_grow_stale(rig: Any, redis: Redis) -> None:
    rig.start_worker()
    await rig.send(some_events(50, seed=13))
    await rig.drained()
    before = await rig.progress(redis, "card")
    async with asyncio.timeout(60):
        while True:
            after = await rig.progress(redis, "card")
            if all(b.current_at > a.current_at for a, b in zip(before, after, strict=True)):
                break
            await asyncio.sleep(0.1)

    assert [part.offset for part in after] == [part.offset for part in before]


@pytest.mark.parametrize(
    "kills", [5, pytest.param(100, marks=[pytest.mark.chaos, pytest.mark.timeout(3_600)])]
)
async def test_kills_in_the_middle_of_a_stream_leave_no_trace(
    rig: Any, redis: Redis, kills: int
) -> None:
    chance, sent = random.Random(kills), 0
    rig.start_worker(session_timeout="PT2S")
    for number in range(kills):
        rig.start_worker(session_timeout="PT2S")  # the group rebalances between two of them
        await rig.send(some_events(300, seed=number, prefix=f"{number}-"))
        await events_pass(rig, redis, at_least=sent + chance.randrange(1, 300))
        sent += 300

        rig.kill_worker(chance.randrange(2))
    await rig.drained()

    assert len(await rig.vectors()) == sent
    await equals_the_oracle(rig)
    await books_balance(rig, received=sent)


async def test_a_worker_that_wakes_up_after_its_partitions_are_gone_writes_nothing(
    rig: Any, redis: Redis
) -> None:
    zombie = rig.start_worker(session_timeout="PT2S")
    await rig.send(some_events(1_000, seed=21, prefix="before-"))
    await events_pass(rig, redis, at_least=300)

    zombie.send_signal(signal.SIGSTOP)
    rig.workers.remove(zombie)
    rig.start_worker()
    await rig.send(some_events(1_000, seed=22, prefix="after-"))
    await rig.drained()
    zombie.send_signal(signal.SIGCONT)

    assert await asyncio.to_thread(zombie.wait, 60) == CRASHED
    assert len(await rig.vectors()) == 2_000
    await equals_the_oracle(rig)
    await books_balance(rig, received=2_000)


@pytest.mark.parametrize("is_running", [True, False], ids=["under-a-worker", "between-workers"])
async def test_a_wiped_online_store_is_rebuilt(rig: Any, redis: Redis, is_running: bool) -> None:
    events = some_events(1_005, seed=31)  # the last five touch few of the keys
    rig.start_worker()
    await rig.send(events[:1_000])
    await rig.drained()
    before = {entity: await rig.online_rows(redis, entity) for entity in rig.view.entities}

    if not is_running:
        assert rig.stop_workers() == [0]
    await rig.forget_online(redis)
    if not is_running:
        rig.start_worker()
    await rig.send(events[1_000:])
    await rig.drained()

    rows, _ = await rig.folded_anew()
    for entity, expected in rows.items():
        assert set(before[entity]) <= set(expected)
        assert await rig.online_rows(redis, entity) == expected
    await equals_the_oracle(rig)


async def test_an_online_store_that_fell_back_in_time_is_brought_up_to_the_fold(
    rig: Any, redis: Redis
) -> None:
    events = some_events(1_000, seed=32)
    rig.start_worker()
    await rig.send(events[:500])
    await rig.drained()
    keys = [key async for key in redis.scan_iter(match=f"h:{rig.name}:*", count=1_000)]
    past = dict(zip(keys, await redis.mget(keys), strict=True))
    await rig.send(events[500:])
    await rig.drained()

    await redis.mset(past)

    rows, _ = await rig.folded_anew()
    async with asyncio.timeout(60):
        for entity, expected in rows.items():
            while await rig.online_rows(redis, entity) != expected:
                rig.check_alive()
                await asyncio.sleep(0.1)
    await equals_the_oracle(rig)


async def test_events_that_expire_unread_are_counted_and_the_rest_is_folded(rig: Any) -> None:
    events = some_events(900, seed=33)
    rig.start_worker()
    await rig.send(events[:300])
    await rig.drained()
    assert rig.stop_workers() == [0]

    await rig.send(events[300:600])
    lost = await rig.expire(topics.EVENTS.of(rig.name))
    await rig.send(events[600:])
    rig.start_worker()
    await rig.drained()

    assert lost == 300
    assert len(await rig.vectors()) == 600
    await equals_the_oracle(rig)
    counters = await rig.counters()
    assert (counters[Counter.RECEIVED], counters[Counter.LOST]) == (600, 300)


@pytest.mark.parametrize("is_running", [True, False], ids=["under-a-worker", "between-workers"])
async def test_a_topic_that_was_made_anew_stops_the_worker_and_says_so(
    rig: Any, is_running: bool
) -> None:
    worker = rig.start_worker()
    await rig.send(some_events(400, seed=51))
    await rig.drained()
    before = await rig.vectors()
    if not is_running:
        assert rig.stop_workers() == [0]

    await rig.make_anew(topics.EVENTS.of(rig.name))
    await rig.send(some_events(5, seed=52, prefix="new-"))

    if not is_running:
        worker = rig.start_worker()
    assert await asyncio.to_thread(worker.wait, 60) == CRASHED
    log = (rig.folder / "worker.log").read_text()
    assert "was the topic deleted and made anew?" in log
    assert await rig.vectors() == before


async def test_a_new_definition_folds_the_whole_log_beside_the_old_one(rig: Any) -> None:
    events = some_events(400, seed=41)
    rig.start_worker()
    await rig.send(events[:200])
    await rig.label([(event["id"], 1.0) for event in events[:50]])
    await rig.drained()
    assert rig.stop_workers() == [0]

    # Of an entity that has folded no labels so far: those joined before count too.
    share = AggregateSpec(entity="device", aggregate="mean(label)", window="sliding 1h")
    changed = rig.with_features(device_bad_1h=share)
    await asyncio.to_thread(changed.start_worker)
    rig.start_worker(role=Role.FOLD)
    await changed.send(events[200:])
    await changed.label([(event["id"], 1.0) for event in events[200:230]])
    await changed.drained()
    await rig.drained()

    assert rig.stop_workers() == [0, 0]
    for one in (rig, changed):
        rows, vectors = await one.folded_anew()
        for entity, expected in rows.items():
            assert await one.state_rows(entity) == expected
        assert await one.vectors() == vectors
        assert len(vectors) == 400
        await books_balance(one, received=400)
    log = await changed.read(changed.view.logs["device"])
    codec = HopCodec(changed.view)
    labels = [
        hops
        for records in log.values()
        for record in records
        if isinstance(hops := codec.decode(record.value, record.offset).hops, LabelHops)
    ]
    assert sum(map(len, labels)) == 80


async def test_duplicates_in_any_order_are_folded_once(rig: Any) -> None:
    events = some_events(600, seed=3)
    twice = events + random.Random(3).sample(events, 200)
    random.Random(4).shuffle(twice)
    rig.start_worker()

    await rig.send(twice)
    await rig.drained()

    assert sorted(vector.id for vector in (await rig.vectors()).values()) == sorted(
        event["id"] for event in events
    )
    await equals_the_oracle(rig)
    assert (await rig.counters())[Counter.DUPLICATE] == 200


async def test_a_label_waits_for_its_event_and_a_correction_is_a_new_version(rig: Any) -> None:
    early, late = some_events(2, seed=5)
    rig.start_worker()

    await rig.label([(early["id"], 1.0), (early["id"], 1.0), ("nobody", 1.0)])
    await rig.drained()
    await rig.send([early, late])
    await rig.drained()
    await rig.label([(late["id"], 0.0), (early["id"], 0.0)])
    await rig.drained()

    outcomes = [
        msgspec.json.decode(record.value, type=Outcome)
        for records in (await rig.read(topics.OUTCOMES.of(rig.name))).values()
        for record in records
    ]
    assert sorted((outcome.id, outcome.version, outcome.label) for outcome in outcomes) == [
        (early["id"], 1, 1.0),
        (early["id"], 2, 0.0),
        (late["id"], 1, 0.0),
    ]
    assert all(outcome.entities["terminal"].startswith("t") for outcome in outcomes)
    await equals_the_oracle(rig)
    counters = await rig.counters()
    assert (counters[Counter.LABELS_PARKED], counters[Counter.LABELS_DUPLICATE]) == (2, 1)


async def test_what_cannot_be_read_goes_to_the_dead_letters_and_the_rest_goes_on(rig: Any) -> None:
    good = some_events(3, seed=6)
    too_late = {**good[0], "id": "too-late", "time": good[0]["time"] - 3_600_000}
    rig.start_worker()

    async with rig.producer() as producer:
        for value in (b"{", b'{"id": "x"}', None):
            await producer.send_and_wait(topics.EVENTS.of(rig.name), value, key=b"c1")
    await rig.send([*good, too_late])
    await rig.drained()

    dead = [
        record
        for records in (await rig.read(topics.DEAD_LETTERS.of(rig.name))).values()
        for record in records
    ]
    reasons = sorted(kafka.header(record.headers, "errors.reason") or "" for record in dead)
    assert reasons == ["invalid", "unparsable", "unparsable"]
    assert {kafka.header(record.headers, "__streams.errors.topic") for record in dead} == {
        topics.EVENTS.of(rig.name)
    }
    late = [
        json.loads(record.value)["id"]
        for records in (await rig.read(topics.LATE.of(rig.name))).values()
        for record in records
    ]
    assert late == ["too-late"]
    assert len(await rig.vectors()) == 3
    assert rig.stop_workers() == [0]
    await books_balance(rig, received=7)


async def test_a_worker_that_is_asked_to_stop_under_load_commits_all_and_leaves(rig: Any) -> None:
    events = some_events(3_000, seed=7)
    worker = rig.start_worker()
    await rig.send(events)
    await vectors_come(rig, at_least=1)

    worker.send_signal(signal.SIGTERM)

    assert worker.wait(timeout=60) == 0
    rig.workers.clear()
    rig.start_worker()
    await rig.drained()
    assert len(await rig.vectors()) == 3_000
    await equals_the_oracle(rig)
    assert (await rig.counters())[Counter.REPEATED] == 0


async def vectors_come(rig: Any, *, at_least: int) -> None:
    """Wait until so many vectors have been emitted."""
    while len(await rig.vectors()) < at_least:
        rig.check_alive()


async def events_pass(rig: Any, redis: Redis, *, at_least: int) -> None:
    """Wait until so many events have been taken in and settled."""
    while True:
        parts = await rig.progress(redis, EVENTS)
        if sum(part.offset for part in parts if part) >= at_least:
            return
        rig.check_alive()
