"""Postgres, schema ``drift``: a lease on a pipeline, and state with input offsets in one
transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from homeostat.common import db
from homeostat.common.errors import TransientError
from homeostat.common.schemas.alerts import Alert
from homeostat.drift import snapshot
from homeostat.drift.joins import ROW, Slice
from homeostat.drift.monitor import State

SCHEMA = "drift"
SCRIPTS = Path(__file__).parent / "migrations"
Offsets = Mapping[tuple[str, int], int]  # (topic, partition) → next offset

_SAVE_STATE = text(
    "INSERT INTO drift.watches (pipeline, state, replayed_clock) VALUES (:pipeline, :state, :clock)"
    " ON CONFLICT (pipeline) DO UPDATE SET state = :state, replayed_clock = :clock"
)
_SAVE_OFFSET = text(
    "INSERT INTO drift.offsets (pipeline, topic, partition, next_offset)"
    " VALUES (:pipeline, :topic, :partition, :offset)"
    " ON CONFLICT (pipeline, topic, partition) DO UPDATE SET next_offset = :offset"
)
_SAVE_SLICE = text(
    "INSERT INTO drift.slices (pipeline, width, number, halvings, rows)"
    " VALUES (:pipeline, :width, :number, :halvings, :rows)"
    " ON CONFLICT (pipeline, width, number) DO UPDATE SET halvings = :halvings, rows = :rows"
)
_DROP_SLICES = text(
    "DELETE FROM drift.slices WHERE pipeline = :pipeline AND (width <> :width OR number < :oldest)"
)
_ADD_ALERT = text(
    "INSERT INTO drift.alerts (id, pipeline, at, body) VALUES (:id, :pipeline, :at, :body)"
    " ON CONFLICT (id) DO NOTHING"
)


@dataclass(frozen=True)
class Saved:
    """What the last transaction left. ``unpublished`` alerts may or may not have reached Kafka."""

    state: State = field(default_factory=State)
    replayed_clock: int | None = None
    offsets: Offsets = field(default_factory=dict)
    unpublished: tuple[Alert, ...] = ()


class Lease:
    """The right to work on one pipeline, held by a database session and lost with it.

    Every write goes through that same session: whoever lost the lease cannot write any more.
    """

    def __init__(self, connection: AsyncConnection, pipeline: str) -> None:
        self._connection = connection
        self._pipeline = pipeline
        self._saved: Mapping[int, Slice] = {}

    async def load(self, *, width: int) -> Saved:
        """The last state, with the slices of this width; those of another cannot be cut anew."""
        async with self._connection.begin():
            saved = await _load(self._connection, self._pipeline, width=width)
        self._saved = saved.state.slices
        return saved

    async def save(
        self,
        state: State,
        *,
        width: int,
        replayed_clock: int | None,
        offsets: Offsets,
        alerts: Sequence[Alert],
        published: Sequence[str],
    ) -> None:
        """State, offsets and alerts in one transaction; of the slices, those that have changed."""
        key = {"pipeline": self._pipeline}
        changed = [
            key
            | {"width": width, "number": number, "halvings": each.halvings}
            | {"rows": each.rows.tobytes()}
            for number, each in state.slices.items()
            if self._saved.get(number) is not each
        ]
        async with self._connection.begin():
            run = self._connection.execute
            await run(_SAVE_STATE, key | {"state": snapshot.encode(state), "clock": replayed_clock})
            if offsets:
                await run(
                    _SAVE_OFFSET,
                    [
                        key | {"topic": topic, "partition": partition, "offset": offset}
                        for (topic, partition), offset in offsets.items()
                    ],
                )
            if changed:
                await run(_SAVE_SLICE, changed)
            if self._saved.keys() - state.slices.keys():
                oldest = min(state.slices, default=max(self._saved) + 1)
                await run(_DROP_SLICES, key | {"width": width, "oldest": oldest})
            if alerts:
                await run(
                    _ADD_ALERT,
                    [
                        key | {"id": each.id, "at": each.at, "body": msgspec.json.encode(each)}
                        for each in alerts
                    ],
                )
            if published:
                await run(
                    text("UPDATE drift.alerts SET is_published = true WHERE id = :id"),
                    [{"id": each} for each in published],
                )
        self._saved = state.slices


class Store:
    """The database, as the service sees it."""

    def __init__(self, database: AsyncEngine) -> None:
        self._database = database
        self.is_ready = False

    async def migrate(self) -> None:
        await db.migrate(self._database, schema=SCHEMA, scripts=SCRIPTS)
        self.is_ready = True

    @asynccontextmanager
    async def lease(self, pipeline: str) -> AsyncIterator[Lease | None]:
        """Work on a pipeline, or ``None`` while another replica does."""
        async with self._database.connect() as connection:
            held = await connection.scalar(
                text("SELECT pg_try_advisory_lock(hashtextextended(:name, 0))"),
                {"name": f"drift {pipeline}"},
            )
            await connection.commit()
            try:
                yield Lease(connection, pipeline) if held else None
            finally:
                # Back in the pool it would still hold the lock; closed, it cannot.
                await connection.invalidate()

    async def load(self, pipeline: str, *, width: int) -> Saved:
        """What whoever holds the lease has committed."""
        try:
            async with self._database.connect() as connection:
                return await _load(connection, pipeline, width=width)
        except (DBAPIError, OSError, TimeoutError) as error:
            raise TransientError("the database does not answer", retry_after_seconds=1) from error

    async def alerts(self, pipeline: str, *, limit: int) -> list[Alert]:
        """The newest alerts first."""
        try:
            async with self._database.connect() as connection:
                found = await connection.execute(
                    text(
                        "SELECT body FROM drift.alerts WHERE pipeline = :pipeline"
                        " ORDER BY at DESC, id LIMIT :limit"
                    ),
                    {"pipeline": pipeline, "limit": limit},
                )
                return [_alert(row.body) for row in found]
        except (DBAPIError, OSError, TimeoutError) as error:
            raise TransientError("the database does not answer", retry_after_seconds=1) from error


async def _load(connection: AsyncConnection, pipeline: str, *, width: int) -> Saved:
    key = {"pipeline": pipeline}
    watch = (
        await connection.execute(
            text("SELECT state, replayed_clock FROM drift.watches WHERE pipeline = :pipeline"), key
        )
    ).first()
    if watch is None:
        return Saved()
    offsets = await connection.execute(
        text(
            'SELECT topic, "partition", next_offset FROM drift.offsets WHERE pipeline = :pipeline'
        ),
        key,
    )
    slices = await connection.execute(
        text(
            "SELECT number, halvings, rows FROM drift.slices"
            " WHERE pipeline = :pipeline AND width = :width"
        ),
        key | {"width": width},
    )
    waiting = await connection.execute(
        text(
            "SELECT body FROM drift.alerts WHERE pipeline = :pipeline AND NOT is_published"
            " ORDER BY at, id"
        ),
        key,
    )
    state = snapshot.decode(watch.state)
    kept = {row.number: Slice(np.frombuffer(row.rows, ROW), row.halvings) for row in slices}
    return Saved(
        state=replace(state, slices=kept),
        replayed_clock=watch.replayed_clock,
        offsets={(row.topic, row.partition): row.next_offset for row in offsets},
        unpublished=tuple(_alert(row.body) for row in waiting),
    )


def _alert(body: bytes) -> Alert:
    return msgspec.json.decode(body, type=Alert)
