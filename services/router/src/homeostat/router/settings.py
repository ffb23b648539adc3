"""Configuration of the router's two processes."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The data plane: read from ``ROUTER_*``, and the shared variables by their usual names."""

    model_config = SettingsConfigDict(
        env_prefix="ROUTER_", frozen=True, populate_by_name=True, extra="ignore"
    )

    kafka_bootstrap_servers: str = Field(
        default="kafka:9092", validation_alias="KAFKA_BOOTSTRAP_SERVERS"
    )
    state_dir: Path = Field(
        default=Path(".homeostat/state/router"), validation_alias="HOMEOSTAT_STATE_DIR"
    )
    pii_hash_key: SecretStr = Field(default=SecretStr(""), validation_alias="PII_HASH_KEY")
    replay_token: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("ROUTER_REPLAY_TOKEN", "INGEST_REPLAY_TOKEN"),
    )
    host: str = "127.0.0.1"
    port: int = 8000

    inference_target: str = "127.0.0.1:9003"  # gRPC
    ingest_url: str = "http://127.0.0.1:8001"
    judge_url: str = "http://127.0.0.1:8006"
    trainer_url: str = "http://127.0.0.1:8005"  # named in an answer, never called

    request_timeout: timedelta = timedelta(milliseconds=250)  # of a prediction, fallback included
    challenger_timeout: timedelta = timedelta(milliseconds=100)  # leaves the champion its time
    control_timeout: timedelta = timedelta(seconds=15)  # of what is forwarded
    max_body_bytes: int = Field(default=1_000_000, ge=1)
    max_request_rows: int = Field(default=1_000, ge=1)
    max_in_flight: int = Field(default=2_000, ge=1)  # rows; beyond: 429
    max_batch_rows: int = Field(default=512, ge=1)  # of one call of inference
    max_shadow_in_flight: int = Field(default=64, ge=0)  # shadow rows; beyond: dropped
    max_waiting_exposures: int = Field(default=20_000, ge=1)  # beyond: counted as lost


class JudgeSettings(BaseSettings):
    """The judge: the same prefix, for it is the same service."""

    model_config = SettingsConfigDict(
        env_prefix="ROUTER_", frozen=True, populate_by_name=True, extra="ignore"
    )

    kafka_bootstrap_servers: str = Field(
        default="kafka:9092", validation_alias="KAFKA_BOOTSTRAP_SERVERS"
    )
    database_url: SecretStr = Field(
        default=SecretStr("postgresql://homeostat@postgres:5432/homeostat"),
        validation_alias="DATABASE_URL",
    )
    state_dir: Path = Field(
        default=Path(".homeostat/state/judge"), validation_alias="HOMEOSTAT_STATE_DIR"
    )
    host: str = Field(
        default="127.0.0.1", validation_alias=AliasChoices("ROUTER_JUDGE_HOST", "JUDGE_HOST")
    )
    port: int = Field(
        default=8006, validation_alias=AliasChoices("ROUTER_JUDGE_PORT", "JUDGE_PORT")
    )
    lease_ttl: timedelta = timedelta(seconds=10)
    lease_renewal: timedelta = timedelta(seconds=3)
    tick: timedelta = timedelta(milliseconds=200)  # how long a cycle waits for records
    max_cycle_records: int = Field(default=5_000, ge=1)
