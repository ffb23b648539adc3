"""Postgres: engines that never wait for ever, and migrations that whoever comes first runs once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

CONNECT_SECONDS = 5
COMMAND_SECONDS = 10


def engine(database_url: str, *, application: str, pool_size: int = 5) -> AsyncEngine:
    """An asyncpg engine with time limits on connecting, waiting and commands."""
    url = make_url(database_url).set(drivername="postgresql+asyncpg")
    return create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_SECONDS,
        pool_pre_ping=True,
        connect_args={
            "timeout": CONNECT_SECONDS,
            "command_timeout": COMMAND_SECONDS,
            "server_settings": {"application_name": application},
        },
    )


async def migrate(database: AsyncEngine, *, schema: str, scripts: Path) -> None:
    """Bring a service's schema to its newest revision; a lock lets all replicas call it at once."""
    async with database.begin() as connection:
        await connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": f"migrate {schema}"}
        )
        await connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))
        await connection.run_sync(_upgrade, schema, scripts)


def _upgrade(connection: Connection, schema: str, scripts: Path) -> None:
    configuration = Config()
    configuration.set_main_option("script_location", str(scripts))
    attributes: dict[str, Any] = {"connection": connection, "schema": schema}
    configuration.attributes.update(attributes)
    command.upgrade(configuration, "head")
