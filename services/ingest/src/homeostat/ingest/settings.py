"""Configuration of the ingest service."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read from ``INGEST_*`` environment variables, and the shared ones by their usual names."""

    model_config = SettingsConfigDict(env_prefix="INGEST_", frozen=True, populate_by_name=True)

    kafka_bootstrap_servers: str = Field(
        default="kafka:9092", validation_alias="KAFKA_BOOTSTRAP_SERVERS"
    )
    state_dir: Path = Field(
        default=Path(".homeostat/state/ingest"), validation_alias="HOMEOSTAT_STATE_DIR"
    )
    host: str = "127.0.0.1"
    port: int = 8001
    replay_token: SecretStr | None = None  # without one, nobody may replay
    pii_hash_key: SecretStr = Field(default=SecretStr(""), validation_alias="PII_HASH_KEY")
    max_body_bytes: int = 5_000_000
    max_rows: int = 10_000
    max_in_flight_bytes: int = 64_000_000
    deadline: timedelta = timedelta(seconds=10)
