"""The lease and the transaction that proves it, on a real Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from homeostat.cli.testing import SessionStack
from homeostat.common import db
from homeostat.router.judging import State
from homeostat.router.rollout import Candidate, crown
from homeostat.router.store import Chain, Outgoing, StaleEpoch, Store

pytestmark = pytest.mark.integration
TTL = timedelta(seconds=10)


@pytest.fixture
async def engine(stack: SessionStack) -> AsyncIterator[AsyncEngine]:
    engine = db.engine(stack.fresh_database(), application="tests")
    yield engine
    await engine.dispose()


@pytest.fixture
async def store(engine: AsyncEngine) -> Store:
    store = Store(engine)
    await store.migrate()
    return store


async def expire(engine: AsyncEngine) -> None:
    """Let the holder's heartbeat be old, as if it had been paused."""
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE router.lease SET heartbeat = heartbeat - interval '1 hour'")
        )


async def test_lease_has_one_holder_until_it_expires(store: Store, engine: AsyncEngine) -> None:
    first = await store.acquire("a", ttl=TTL)
    while_held = await store.acquire("b", ttl=TTL)
    await expire(engine)
    second = await store.acquire("b", ttl=TTL)

    assert (first, while_held, second) == (1, None, 2)


async def test_released_lease_is_free_at_once(store: Store) -> None:
    await store.release(await store.acquire("a", ttl=TTL) or 0)

    assert await store.acquire("b", ttl=TTL) == 2


async def test_paused_leader_that_wakes_up_is_refused_every_write(
    store: Store, engine: AsyncEngine
) -> None:
    stale = await store.acquire("a", ttl=TTL) or 0
    await expire(engine)
    acting = await store.acquire("b", ttl=TTL) or 0
    state = State(crown(State.empty("shop").rollout, Candidate(1, "one"), 7))
    record = Chain().link("shop", "crowned", 7, {})

    with pytest.raises(StaleEpoch):
        await store.renew(stale)
    with pytest.raises(StaleEpoch):
        await store.commit(
            stale, states={"shop": state}, offsets={("t", 0): 5}, records=[record], outgoing=[]
        )
    untouched = await store.load()
    await store.commit(
        acting, states={"shop": state}, offsets={("t", 0): 5}, records=[record], outgoing=[]
    )
    kept = await store.load()

    assert (untouched.states, untouched.offsets) == ({}, {})
    assert (kept.states, kept.offsets) == ({"shop": state}, {("t", 0): 5})
    assert kept.chain == Chain(1, record.digest)


async def test_outbox_keeps_what_was_not_acknowledged(store: Store) -> None:
    epoch = await store.acquire("a", ttl=TTL) or 0
    told = [Outgoing("shop", "rollouts", "shop", b"1"), Outgoing("shop", "audit", "router", b"2")]

    kept = await store.commit(epoch, states={}, offsets={}, records=[], outgoing=told)
    await store.forget(epoch, kept[:1])

    assert (await store.load()).outbox == kept[1:]
