"""Alembic's environment: runs on the connection and in the schema that the service hands over."""

from alembic import context

connection = context.config.attributes["connection"]
schema = context.config.attributes["schema"]

context.configure(connection=connection, version_table_schema=schema)
with context.begin_transaction():
    context.run_migrations()
