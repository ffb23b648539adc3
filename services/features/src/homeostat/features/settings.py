"""Configuration of the features service."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from pydantic import Field, RedisDsn
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read from ``FEATURES_*`` variables; those that all services share have no prefix."""

    model_config = SettingsConfigDict(env_prefix="FEATURES_", frozen=True, populate_by_name=True)

    host: str = "127.0.0.1"
    port: int = 8002
    grpc_port: int = 9002
    kafka_bootstrap_servers: str = Field(
        "localhost:9092", validation_alias="KAFKA_BOOTSTRAP_SERVERS"
    )
    redis_url: RedisDsn = Field(RedisDsn("redis://localhost:6379/0"), validation_alias="REDIS_URL")
    state_dir: Path = Field(Path(".homeostat"), validation_alias="HOMEOSTAT_STATE_DIR")

    session_timeout: timedelta = timedelta(seconds=10)  # a dead worker's partitions move after it
    fetch_wait: timedelta = timedelta(milliseconds=20)
    max_fetch_records: int = Field(2_000, ge=1, le=20_000)
    commit_interval: timedelta = timedelta(seconds=1)
    materialize_interval: timedelta = timedelta(milliseconds=50)  # under load; at once when idle
    heartbeat_interval: timedelta = timedelta(seconds=5)  # of inputs without traffic
    transaction_timeout: timedelta = timedelta(seconds=10)  # what a dead worker can hold readers up
    deduplication_horizon: timedelta = timedelta(hours=24)
    deduplication_ids: int = Field(1_000_000, ge=1_000)  # per partition, at most
    label_grace: timedelta = timedelta(days=1)  # beyond a label's maturity
    fill_patience: timedelta = timedelta(hours=24)  # for history, before a definition's log is read
    definition_grace: timedelta = timedelta(days=1)  # unneeded for so long, it is removed
    progress_timeout: timedelta = timedelta(seconds=30)  # lag without movement: the worker is ended

    read_timeout: timedelta = timedelta(milliseconds=250)  # of the online store, never retried
    read_connections: int = Field(16, ge=1)
    read_max_rows: int = Field(1_000, ge=1)  # entities of one request
    stale_after: timedelta = timedelta(seconds=30)  # of a partition's progress

    offline_store_path: Path = Field(
        Path(".homeostat/offline"), validation_alias="OFFLINE_STORE_PATH"
    )
    offline_flush_bytes: int = Field(64 * 1024 * 1024, ge=1)  # a table's rows, in memory
    offline_flush_interval: timedelta = timedelta(seconds=30)
    offline_compact_every: int = Field(20, ge=2)  # commits of a table
    offline_retention: timedelta = timedelta(days=30)  # how long old versions can be read
    offline_commit_timeout: timedelta = timedelta(seconds=30)  # of a requested commit
    offline_unreadable_share: float = Field(0.01, ge=0, le=1)  # above it the writer stops

    audit_share: float = Field(0.01, ge=0, le=1)  # of the keys of each entity; 0: no audit
    audit_keys: int = Field(200, ge=1)  # of each entity, at most
    audit_rows: int = Field(2_000, ge=1)  # of a key's history; a longer one leaves the sample
    audit_patience: timedelta = timedelta(seconds=60)  # for a scored event to come to the log
