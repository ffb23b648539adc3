"""Leadership over a pipeline, on a real Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from homeostat.cli.testing import SessionStack
from homeostat.common import db
from homeostat.trainer.store import Store

pytestmark = pytest.mark.integration


@pytest.fixture
async def database(stack: SessionStack) -> AsyncIterator[AsyncEngine]:
    engine = db.engine(stack.fresh_database(), application="test")
    yield engine
    await engine.dispose()


@pytest.fixture
async def store(database: AsyncEngine) -> AsyncIterator[Store]:
    locks = db.engine(
        database.url.render_as_string(hide_password=False), application="test locks", pool_size=2
    )
    store = Store(database, locks=locks)
    yield store
    await store.close()


async def test_a_pipeline_has_one_leader_at_a_time(store: Store) -> None:
    async with store.leading("fraud") as first, store.leading("fraud") as second:
        assert (first is None, second is None) == (False, True)

    async with store.leading("fraud") as successor:
        assert successor is not None


async def test_a_leader_whose_session_is_ended_says_so_and_another_can_lead(
    store: Store, database: AsyncEngine
) -> None:
    async def lead() -> None:
        async with store.leading("fraud") as leadership:
            assert leadership is not None
            await end_sessions(database)
            await leadership.confirm()

    with pytest.raises(DBAPIError):
        await lead()

    async with store.leading("fraud") as successor:
        assert successor is not None


async def end_sessions(database: AsyncEngine) -> None:
    async with database.begin() as connection:
        await connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'test locks' AND datname = current_database()"
            )
        )
