"""Postgres: runs, versions and their files, the triggers' memory, and what is yet to be told.

Whatever is decided is written in one transaction with what it was decided from; records for Kafka
wait in the outbox of the same transaction.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import RowMapping, text
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from homeostat.common import db, kafka, topics
from homeostat.common.errors import TransientError
from homeostat.common.pipeline import Snapshot
from homeostat.common.schemas.audit import Record
from homeostat.common.schemas.models import ModelVersion
from homeostat.trainer.triggers import State, Trigger

SCHEMA = "trainer"
SCRIPTS = Path(__file__).parent / "migrations"

Positions = Mapping[tuple[str, int], int]  # (topic, partition) → next offset


class RunState(StrEnum):
    """The steps of a run in order, and its three ends."""

    QUEUED = "queued"
    DATASET = "dataset"
    TUNING = "tuning"
    JUDGING = "judging"
    REGISTERING = "registering"
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        return self in (RunState.DONE, RunState.REFUSED, RunState.FAILED)


@dataclass(frozen=True)
class Run:
    id: str
    pipeline: str
    state: RunState
    trigger: Trigger
    triggered_at: int
    snapshot: Snapshot
    table_versions: dict[str, int] | None
    champion: int | None
    tuned: dict[str, Any] | None
    judged: dict[str, Any] | None
    version: int | None
    reason: str
    attempts: int
    clock: int | None  # of the pipeline, where it is replayed

    def document(self) -> dict[str, Any]:
        """The run as people and programs read it."""
        return {
            "id": self.id,
            "pipeline": self.pipeline,
            "state": self.state,
            "trigger": self.trigger,
            "triggered_at": self.triggered_at,
            "pipeline_hash": self.snapshot.content_hash,
            "table_versions": self.table_versions,
            "champion": self.champion,
            "tuned": self.tuned,
            "judged": self.judged,
            "version": self.version,
            "reason": self.reason,
            "attempts": self.attempts,
        }


@dataclass(frozen=True)
class Registered:
    """A version, its announcement, and what MLflow calls it."""

    announcement: ModelVersion
    run_id: str
    mlflow_run: str | None
    mlflow_version: str | None


@dataclass(frozen=True)
class Waiting:
    """A record for Kafka that was decided and not yet acknowledged."""

    id: int
    topic: str
    key: str
    value: bytes
    headers: list[tuple[str, bytes]]


class Memory(msgspec.Struct, frozen=True):
    """What a pipeline's triggers remember, and the replayed clock they stand at."""

    state: State
    clock: int | None


class Store:
    """``locks`` are connections of their own: a leader keeps one for as long as it leads."""

    def __init__(self, database: AsyncEngine, *, locks: AsyncEngine) -> None:
        self._database = database
        self._locks = locks
        self.is_ready = False

    async def migrate(self) -> None:
        await db.migrate(self._database, schema=SCHEMA, scripts=SCRIPTS)
        self.is_ready = True

    @asynccontextmanager
    async def leading(self, pipeline: str) -> AsyncIterator[Leadership | None]:
        """Lead a pipeline while the connection lives; ``None`` while another replica does."""
        async with self._locks.connect() as connection:
            connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
            name = {"name": f"trainer {pipeline}"}
            is_mine = await connection.scalar(
                text("SELECT pg_try_advisory_lock(hashtextextended(:name, 0))"), name
            )
            try:
                yield Leadership(connection) if is_mine else None
            finally:
                if is_mine:
                    await _unlock(connection, name)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """One transaction.

        Raises:
            TransientError: Postgres is away; nothing was written.
        """
        try:
            async with self._database.begin() as connection:
                yield Transaction(connection)
        except (IntegrityError, ProgrammingError):
            raise
        except (DBAPIError, PoolTimeout, OSError, TimeoutError) as error:
            raise TransientError("Postgres is away", retry_after_seconds=2) from error

    async def close(self) -> None:
        await self._database.dispose()
        await self._locks.dispose()


class Leadership:
    """An advisory lock: gone with its connection, however that ends."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def confirm(self) -> None:
        """
        Raises:
            DBAPIError: the connection is lost, and another replica may lead.
        """
        await self._connection.execute(text("SELECT 1"))


async def _unlock(connection: AsyncConnection, name: dict[str, str]) -> None:
    try:
        await connection.execute(
            text("SELECT pg_advisory_unlock(hashtextextended(:name, 0))"), name
        )
    except SQLAlchemyError:
        # The session is gone, and its lock with it; after a failed ``confirm`` SQLAlchemy says so
        # with an error of its own, that of a transaction it would like rolled back.
        await connection.invalidate()


class Transaction:
    """The statements of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    # Triggers and inputs

    async def memory(self, pipeline: str) -> Memory:
        """Read and lock what a pipeline's triggers remember."""
        await self._execute(
            "INSERT INTO trainer.triggers (pipeline, state) VALUES (:pipeline, '{}') "
            "ON CONFLICT DO NOTHING",
            pipeline=pipeline,
        )
        row = await self._one(
            "SELECT state, clock FROM trainer.triggers WHERE pipeline = :pipeline FOR UPDATE",
            pipeline=pipeline,
        )
        if row is None:
            raise RuntimeError("a row just inserted is gone")
        return Memory(msgspec.convert(row["state"], State), row["clock"])

    async def remember(self, pipeline: str, memory: Memory) -> None:
        await self._execute(
            "UPDATE trainer.triggers SET state = CAST(:state AS jsonb), clock = :clock "
            "WHERE pipeline = :pipeline",
            pipeline=pipeline,
            state=_json(memory.state),
            clock=memory.clock,
        )

    async def clock(self, pipeline: str) -> int | None:
        row = await self._one(
            "SELECT clock FROM trainer.triggers WHERE pipeline = :pipeline", pipeline=pipeline
        )
        return row["clock"] if row else None

    async def positions(self, pipeline: str) -> dict[tuple[str, int], int]:
        rows = await self._all(
            "SELECT topic, partition, next_offset FROM trainer.positions "
            "WHERE pipeline = :pipeline",
            pipeline=pipeline,
        )
        return {(row["topic"], row["partition"]): row["next_offset"] for row in rows}

    async def advance_positions(self, pipeline: str, positions: Positions) -> None:
        for (topic, partition), offset in positions.items():
            await self._execute(
                "INSERT INTO trainer.positions (pipeline, topic, partition, next_offset) "
                "VALUES (:pipeline, :topic, :partition, :offset) ON CONFLICT (topic, partition) "
                "DO UPDATE SET next_offset = greatest(positions.next_offset, :offset)",
                pipeline=pipeline,
                topic=topic,
                partition=partition,
                offset=offset,
            )

    # Runs

    async def queue(
        self, run_id: str, snapshot: Snapshot, trigger: Trigger, *, triggered_at: int
    ) -> None:
        await self._execute(
            "INSERT INTO trainer.runs (id, pipeline, state, trigger, triggered_at, snapshot) "
            "VALUES (:id, :pipeline, 'queued', CAST(:trigger AS jsonb), :triggered_at, :snapshot)",
            id=run_id,
            pipeline=snapshot.pipeline.name,
            trigger=_json(trigger),
            triggered_at=triggered_at,
            snapshot=snapshot.encode(),
        )

    async def active_run(self, pipeline: str) -> Run | None:
        row = await self._one(
            f"{_RUNS} WHERE r.pipeline = :pipeline "
            "AND r.state NOT IN ('done', 'refused', 'failed')",
            pipeline=pipeline,
        )
        return _run(row) if row else None

    async def run(self, pipeline: str, run_id: str) -> Run | None:
        row = await self._one(
            f"{_RUNS} WHERE r.pipeline = :pipeline AND r.id = :id", pipeline=pipeline, id=run_id
        )
        return _run(row) if row else None

    async def runs(self, pipeline: str, *, limit: int) -> list[Run]:
        rows = await self._all(
            f"{_RUNS} WHERE r.pipeline = :pipeline ORDER BY r.started_at DESC, r.id LIMIT :limit",
            pipeline=pipeline,
            limit=limit,
        )
        return [_run(row) for row in rows]

    async def move(self, run: Run, state: RunState, **columns: Any) -> bool:
        """Take a run to its next state, if nobody else has moved it meanwhile."""
        assignments = "".join(f", {_assignment(name)}" for name in columns)
        values = {
            name: _json(value) if name in _JSON_COLUMNS else value
            for name, value in columns.items()
        }
        moved = await self._connection.execute(
            text(
                f"UPDATE trainer.runs SET state = :state, changed_at = now(){assignments} "  # noqa: S608 - names of columns, from our own code
                "WHERE id = :id AND state = :before"
            ),
            {"state": state, "id": run.id, "before": run.state, **values},
        )
        return moved.rowcount == 1

    # Versions and their files

    async def next_version(self, pipeline: str) -> int:
        """One more than the highest number; the caller holds the row of the pipeline's triggers."""
        row = await self._one(
            "SELECT coalesce(max(version), 0) + 1 AS next FROM trainer.versions "
            "WHERE pipeline = :pipeline",
            pipeline=pipeline,
        )
        return int(row["next"]) if row else 1

    async def add_version(self, run_id: str, version: ModelVersion, content: bytes) -> None:
        await self._execute(
            "INSERT INTO trainer.artifacts (sha256, content) VALUES (:sha256, :content) "
            "ON CONFLICT DO NOTHING",
            sha256=version.artifact.sha256,
            content=content,
        )
        await self._execute(
            "INSERT INTO trainer.versions (pipeline, version, run_id, sha256, announcement) "
            "VALUES (:pipeline, :version, :run_id, :sha256, :announcement)",
            pipeline=version.pipeline,
            version=version.version,
            run_id=run_id,
            sha256=version.artifact.sha256,
            announcement=msgspec.json.encode(version),
        )
        await self.announce(version)

    async def change_version(self, version: ModelVersion) -> None:
        await self._execute(
            "UPDATE trainer.versions SET announcement = :announcement "
            "WHERE pipeline = :pipeline AND version = :version",
            pipeline=version.pipeline,
            version=version.version,
            announcement=msgspec.json.encode(version),
        )
        await self.announce(version)

    async def version(self, pipeline: str, number: int) -> Registered | None:
        row = await self._one(
            f"{_VERSIONS} WHERE pipeline = :pipeline AND version = :version FOR UPDATE",
            pipeline=pipeline,
            version=number,
        )
        return _registered(row) if row else None

    async def versions(self, pipeline: str) -> list[Registered]:
        rows = await self._all(
            f"{_VERSIONS} WHERE pipeline = :pipeline ORDER BY version DESC", pipeline=pipeline
        )
        return [_registered(row) for row in rows]

    async def artifact(self, sha256: str) -> bytes | None:
        row = await self._one(
            "SELECT content FROM trainer.artifacts WHERE sha256 = :sha256", sha256=sha256
        )
        return bytes(row["content"]) if row else None

    async def unregistered(self) -> list[Registered]:
        """Versions that MLflow does not know yet, oldest first."""
        rows = await self._all(
            f"{_VERSIONS} WHERE mlflow_version IS NULL ORDER BY pipeline, version"
        )
        return [_registered(row) for row in rows]

    async def registered_in_mlflow(
        self, version: ModelVersion, *, run: str, mlflow_version: str
    ) -> None:
        await self._execute(
            "UPDATE trainer.versions SET mlflow_run = :run, mlflow_version = :mlflow_version "
            "WHERE pipeline = :pipeline AND version = :version",
            pipeline=version.pipeline,
            version=version.version,
            run=run,
            mlflow_version=mlflow_version,
        )

    # What is told

    async def announce(self, version: ModelVersion) -> None:
        key = f"{version.pipeline}/{version.version}"
        await self._tell(
            version.pipeline, topics.MODEL_VERSIONS, key, msgspec.json.encode(version), {}
        )

    async def audit(self, pipeline: str, action: str, *, at: int, evidence: dict[str, Any]) -> None:
        """Append a decision to the service's chain; the lock keeps it a chain."""
        await self._execute("SELECT pg_advisory_xact_lock(hashtextextended('trainer audit', 0))")
        last = await self._one(
            "SELECT sequence, digest FROM trainer.audit ORDER BY sequence DESC LIMIT 1"
        )
        record = Record(
            service=SCHEMA,
            pipeline=pipeline,
            action=action,
            at=at,
            evidence=evidence,
            sequence=last["sequence"] + 1 if last else 1,
            previous=last["digest"] if last else "",
        )
        value = msgspec.json.encode(record)
        # As a reader of the topic will see it: the digest is of the decoded record.
        digest = msgspec.json.decode(value, type=Record).digest
        await self._execute(
            "INSERT INTO trainer.audit (sequence, digest, record) "
            "VALUES (:sequence, :digest, :record)",
            sequence=record.sequence,
            digest=digest,
            record=value,
        )
        await self._tell(pipeline, topics.AUDIT, SCHEMA, value, {})

    async def outbox(self, pipeline: str) -> list[Waiting]:
        rows = await self._all(
            "SELECT id, topic, key, value, headers FROM trainer.outbox "
            "WHERE pipeline = :pipeline ORDER BY id",
            pipeline=pipeline,
        )
        return [
            Waiting(
                row["id"],
                row["topic"],
                row["key"],
                bytes(row["value"]),
                [(name, value.encode()) for name, value in row["headers"].items()],
            )
            for row in rows
        ]

    async def told(self, waiting: Sequence[Waiting]) -> None:
        await self._execute(
            "DELETE FROM trainer.outbox WHERE id = ANY(:ids)", ids=[item.id for item in waiting]
        )

    async def _tell(
        self, pipeline: str, topic: topics.Topic, key: str, value: bytes, headers: dict[str, str]
    ) -> None:
        clock = await self.clock(pipeline)
        if clock is not None:
            headers = {**headers, kafka.AVAILABLE_AT: str(clock)}
        await self._execute(
            "INSERT INTO trainer.outbox (pipeline, topic, key, value, headers) "
            "VALUES (:pipeline, :topic, :key, :value, CAST(:headers AS jsonb))",
            pipeline=pipeline,
            topic=topic.of(),
            key=key,
            value=value,
            headers=_json(headers),
        )

    async def _execute(self, statement: str, **values: Any) -> None:
        await self._connection.execute(text(statement), values)

    async def _one(self, statement: str, **values: Any) -> RowMapping | None:
        return (await self._connection.execute(text(statement), values)).mappings().first()

    async def _all(self, statement: str, **values: Any) -> Sequence[RowMapping]:
        return (await self._connection.execute(text(statement), values)).mappings().all()


_JSON_COLUMNS = frozenset({"table_versions", "tuned", "judged"})
_RUNS = (
    "SELECT r.*, t.clock FROM trainer.runs r "
    "LEFT JOIN trainer.triggers t ON t.pipeline = r.pipeline"
)
_VERSIONS = "SELECT announcement, run_id, mlflow_run, mlflow_version FROM trainer.versions"


def _assignment(column: str) -> str:
    return (
        f"{column} = CAST(:{column} AS jsonb)"
        if column in _JSON_COLUMNS
        else f"{column} = :{column}"
    )


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _run(row: RowMapping) -> Run:
    return Run(
        id=row["id"],
        pipeline=row["pipeline"],
        state=RunState(row["state"]),
        trigger=msgspec.convert(row["trigger"], Trigger),
        triggered_at=row["triggered_at"],
        snapshot=Snapshot.decode(bytes(row["snapshot"])),
        table_versions=row["table_versions"],
        champion=row["champion"],
        tuned=row["tuned"],
        judged=row["judged"],
        version=row["version"],
        reason=row["reason"],
        attempts=row["attempts"],
        clock=row["clock"],
    )


def _registered(row: RowMapping) -> Registered:
    return Registered(
        msgspec.json.decode(bytes(row["announcement"]), type=ModelVersion),
        row["run_id"],
        row["mlflow_run"],
        row["mlflow_version"],
    )
