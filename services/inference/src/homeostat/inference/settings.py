"""Configuration of the inference service."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read from ``INFERENCE_*``, and from the variables that all services share."""

    model_config = SettingsConfigDict(
        env_prefix="INFERENCE_", frozen=True, populate_by_name=True, extra="ignore"
    )

    kafka_bootstrap_servers: str = Field("kafka:9092", validation_alias="KAFKA_BOOTSTRAP_SERVERS")
    redis_url: SecretStr = Field(SecretStr("redis://redis:6379/0"), validation_alias="REDIS_URL")
    state_dir: Path = Field(
        Path(".homeostat/state/inference"), validation_alias="HOMEOSTAT_STATE_DIR"
    )
    model_verify_key_file: Path = Field(
        Path(".homeostat/keys/models.pub"), validation_alias="MODEL_VERIFY_KEY_FILE"
    )

    host: str = "127.0.0.1"
    port: int = 8003
    grpc_port: int = 9003
    pii_hash_key: SecretStr = Field(default=SecretStr(""), validation_alias="PII_HASH_KEY")

    max_batch_rows: int = Field(256, ge=1, le=4096)  # what one turn of the loop may score
    queue_rows: int = Field(8192, ge=1)  # per pipeline; beyond: 429
    max_request_rows: int = Field(10_000, ge=1)
    max_body_bytes: int = Field(5_000_000, ge=1)
    max_timeout: timedelta = timedelta(seconds=30)  # a longer deadline is cut to this

    session_timeout: timedelta = timedelta(seconds=10)  # a dead replica's partitions move after it

    redis_timeout: timedelta = timedelta(milliseconds=20)  # of the hot read; never retried
    redis_connections: int = Field(16, ge=1)
    breaker_failures: int = Field(3, ge=1)
    breaker_open: timedelta = timedelta(seconds=1)
    stale_after: timedelta = timedelta(seconds=30)  # of a partition's progress

    probe_timeout: timedelta = timedelta(seconds=30)
    drain: timedelta = timedelta(seconds=30)  # how long a replaced version stays addressable

    ledger_rows: int = Field(100_000, ge=1)  # waiting to be written; beyond: counted as lost
    ledger_flush: timedelta = timedelta(seconds=10)  # at shutdown
