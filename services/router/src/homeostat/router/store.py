"""The judge's memory in Postgres: the lease, states, input offsets, decisions, and an outbox.

Whatever one cycle changes is one transaction, and each transaction proves its epoch first: it
locks the lease's row in share mode, so a successor cannot take over in between and always finds the
last state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from homeostat.common import db
from homeostat.common.schemas.audit import Record
from homeostat.router.judging import State

SCHEMA = "router"
SCRIPTS = Path(__file__).parent / "migrations"
Position = tuple[str, int]  # topic, partition

_encode = msgspec.json.Encoder().encode
_decode_state = msgspec.json.Decoder(State).decode
_decode_record = msgspec.json.Decoder(Record).decode


class StaleEpoch(Exception):
    """Another judge has taken over; whoever sees this must stop acting at once."""


@dataclass(frozen=True)
class Outgoing:
    """A record that is to be sent to Kafka; ``id`` is given when it is kept."""

    pipeline: str
    topic: str
    key: str
    value: bytes
    id: int = 0


@dataclass(frozen=True)
class Chain:
    """The end of the hash chain of decisions."""

    sequence: int = 0
    digest: str = ""

    def link(self, pipeline: str, action: str, at: int, evidence: dict[str, Any]) -> Record:
        return Record("router", pipeline, action, at, evidence, self.sequence + 1, self.digest)

    def after(self, record: Record) -> Chain:
        return Chain(record.sequence, record.digest)


@dataclass(frozen=True)
class Kept:
    """What a judge takes over."""

    states: dict[str, State] = field(default_factory=dict)
    offsets: dict[Position, int] = field(default_factory=dict)
    chain: Chain = Chain()
    outbox: list[Outgoing] = field(default_factory=list)


class Store:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def migrate(self) -> None:
        await db.migrate(self._engine, schema=SCHEMA, scripts=SCRIPTS)

    async def acquire(self, holder: str, *, ttl: timedelta) -> int | None:
        """Take the lease if it is free or expired; the new epoch, or ``None``.

        Time is the database's: the clocks of judges need not agree.
        """
        async with self._engine.begin() as connection:
            epoch = await connection.scalar(
                text(
                    """
                    INSERT INTO router.lease AS lease (name, holder, epoch, heartbeat)
                    VALUES ('judge', :holder, 1, clock_timestamp())
                    ON CONFLICT (name) DO UPDATE
                    SET holder = :holder, epoch = lease.epoch + 1, heartbeat = clock_timestamp()
                    WHERE lease.heartbeat < clock_timestamp() - make_interval(secs => :ttl)
                    RETURNING epoch
                    """
                ),
                {"holder": holder, "ttl": ttl.total_seconds()},
            )
        return None if epoch is None else int(epoch)

    async def renew(self, epoch: int) -> None:
        """Say that the holder is alive.

        Raises:
            StaleEpoch: it is the holder no longer.
        """
        async with self._engine.begin() as connection:
            renewed = await connection.execute(
                text("UPDATE router.lease SET heartbeat = clock_timestamp() WHERE epoch = :epoch"),
                {"epoch": epoch},
            )
        if renewed.rowcount == 0:
            raise StaleEpoch(f"epoch {epoch} is over")

    async def release(self, epoch: int) -> None:
        """Let the next judge take over at once."""
        async with self._engine.begin() as connection:
            await connection.execute(
                text("UPDATE router.lease SET heartbeat = '-infinity' WHERE epoch = :epoch"),
                {"epoch": epoch},
            )

    async def load(self) -> Kept:
        async with self._engine.connect() as connection:
            states = await connection.execute(text("SELECT pipeline, state FROM router.states"))
            offsets = await connection.execute(
                text("SELECT topic, partition, next_offset FROM router.offsets")
            )
            head = await connection.execute(
                text("SELECT sequence, digest FROM router.decisions ORDER BY sequence DESC LIMIT 1")
            )
            outbox = await connection.execute(
                text("SELECT pipeline, topic, key, value, id FROM router.outbox ORDER BY id")
            )
            last = head.one_or_none()
            return Kept(
                states={name: _decode_state(state) for name, state in states},
                offsets={(topic, partition): offset for topic, partition, offset in offsets},
                chain=Chain(*last) if last else Chain(),
                outbox=[Outgoing(*row) for row in outbox],
            )

    async def state(self, pipeline: str) -> State | None:
        async with self._engine.connect() as connection:
            value = await connection.scalar(
                text("SELECT state FROM router.states WHERE pipeline = :pipeline"),
                {"pipeline": pipeline},
            )
        return None if value is None else _decode_state(value)

    async def commit(
        self,
        epoch: int,
        *,
        states: Mapping[str, State],
        offsets: Mapping[Position, int],
        records: Sequence[Record],
        outgoing: Sequence[Outgoing],
    ) -> list[Outgoing]:
        """Keep what one cycle has changed, all or nothing; the outgoing records with their ids.

        Raises:
            StaleEpoch: another judge has taken over; nothing was kept.
        """
        async with self._engine.begin() as connection:
            await _prove(connection, epoch)
            await _save_states(connection, epoch, states)
            await _save_offsets(connection, offsets)
            if records:
                await connection.execute(
                    text(
                        "INSERT INTO router.decisions"
                        " VALUES (:sequence, :pipeline, :digest, :record)"
                    ),
                    [
                        {
                            "sequence": record.sequence,
                            "pipeline": record.pipeline,
                            "digest": record.digest,
                            "record": _encode(record),
                        }
                        for record in records
                    ],
                )
            return [await _post(connection, record) for record in outgoing]

    async def forget(self, epoch: int, sent: Iterable[Outgoing]) -> None:
        """Drop what the broker has acknowledged."""
        async with self._engine.begin() as connection:
            await _prove(connection, epoch)
            await connection.execute(
                text("DELETE FROM router.outbox WHERE id = ANY(:ids)"),
                {"ids": [record.id for record in sent]},
            )

    async def decisions(self, pipeline: str, *, limit: int) -> list[Record]:
        """The newest decisions about a pipeline, newest first."""
        async with self._engine.connect() as connection:
            rows = await connection.execute(
                text(
                    "SELECT record FROM router.decisions WHERE pipeline = :pipeline"
                    " ORDER BY sequence DESC LIMIT :limit"
                ),
                {"pipeline": pipeline, "limit": limit},
            )
            return [_decode_record(record) for (record,) in rows]


async def _prove(connection: AsyncConnection, epoch: int) -> None:
    current = await connection.scalar(
        text("SELECT epoch FROM router.lease WHERE name = 'judge' FOR SHARE")
    )
    if current != epoch:
        raise StaleEpoch(f"epoch {epoch} is over, {current} acts")


async def _save_states(
    connection: AsyncConnection, epoch: int, states: Mapping[str, State]
) -> None:
    if not states:
        return
    await connection.execute(
        text(
            """
            INSERT INTO router.states (pipeline, epoch, generation, state)
            VALUES (:pipeline, :epoch, :generation, :state)
            ON CONFLICT (pipeline) DO UPDATE
            SET epoch = :epoch, generation = :generation, state = :state
            """
        ),
        [
            {
                "pipeline": name,
                "epoch": epoch,
                "generation": state.rollout.generation,
                "state": _encode(state),
            }
            for name, state in states.items()
        ],
    )


async def _save_offsets(connection: AsyncConnection, offsets: Mapping[Position, int]) -> None:
    if not offsets:
        return
    await connection.execute(
        text(
            """
            INSERT INTO router.offsets VALUES (:topic, :partition, :next_offset)
            ON CONFLICT (topic, partition) DO UPDATE SET next_offset = :next_offset
            """
        ),
        [
            {"topic": topic, "partition": partition, "next_offset": offset}
            for (topic, partition), offset in offsets.items()
        ],
    )


async def _post(connection: AsyncConnection, record: Outgoing) -> Outgoing:
    kept = await connection.scalar(
        text(
            "INSERT INTO router.outbox (pipeline, topic, key, value)"
            " VALUES (:pipeline, :topic, :key, :value) RETURNING id"
        ),
        {
            "pipeline": record.pipeline,
            "topic": record.topic,
            "key": record.key,
            "value": record.value,
        },
    )
    return Outgoing(record.pipeline, record.topic, record.key, record.value, int(kept or 0))
