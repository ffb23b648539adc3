"""Alembic's entry: runs on the connection that ``homeostat.common.db.migrate`` gives it."""

from __future__ import annotations

from alembic import context

connection = context.config.attributes["connection"]
schema = context.config.attributes["schema"]
context.configure(connection=connection, version_table_schema=schema)
context.run_migrations()
