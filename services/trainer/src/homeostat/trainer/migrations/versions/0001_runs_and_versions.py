"""Runs, versions, their files, triggers with input positions, and the outbox."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    """
    CREATE TABLE trainer.triggers (
        pipeline text PRIMARY KEY,
        state jsonb NOT NULL,
        clock bigint                         -- epoch ms; null while the pipeline runs on wall time
    )
    """,
    """
    CREATE TABLE trainer.positions (
        pipeline text NOT NULL,
        topic text NOT NULL,
        partition integer NOT NULL,
        next_offset bigint NOT NULL,
        PRIMARY KEY (topic, partition)
    )
    """,
    """
    CREATE TABLE trainer.runs (
        id text PRIMARY KEY,
        pipeline text NOT NULL,
        state text NOT NULL,
        trigger jsonb NOT NULL,
        triggered_at bigint NOT NULL,        -- epoch ms, pipeline time: the training set's as-of
        snapshot bytea NOT NULL,             -- the pipeline as it was then
        table_versions jsonb,
        champion integer,
        tuned jsonb,
        judged jsonb,
        version integer,
        reason text NOT NULL DEFAULT '',
        attempts integer NOT NULL DEFAULT 0,
        started_at timestamptz NOT NULL DEFAULT now(),
        changed_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    # The last word on single flight, whatever a replica believes.
    """
    CREATE UNIQUE INDEX one_active_run ON trainer.runs (pipeline)
        WHERE state NOT IN ('done', 'refused', 'failed')
    """,
    "CREATE INDEX runs_of_pipeline ON trainer.runs (pipeline, started_at DESC)",
    """
    CREATE TABLE trainer.artifacts (
        sha256 text PRIMARY KEY,
        content bytea NOT NULL
    )
    """,
    """
    CREATE TABLE trainer.versions (
        pipeline text NOT NULL,
        version integer NOT NULL,
        run_id text NOT NULL UNIQUE REFERENCES trainer.runs (id),
        sha256 text NOT NULL REFERENCES trainer.artifacts (sha256),
        announcement bytea NOT NULL,
        mlflow_run text,
        mlflow_version text,
        PRIMARY KEY (pipeline, version)
    )
    """,
    """
    CREATE TABLE trainer.outbox (
        id bigserial PRIMARY KEY,
        pipeline text NOT NULL,
        topic text NOT NULL,
        key text NOT NULL,
        value bytea NOT NULL,
        headers jsonb NOT NULL
    )
    """,
    """
    CREATE TABLE trainer.audit (
        sequence bigint PRIMARY KEY,
        digest text NOT NULL,
        record bytea NOT NULL
    )
    """,
)


def upgrade() -> None:
    for statement in TABLES:
        op.execute(statement)
