"""Configuration of the drift service."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read from ``DRIFT_*`` environment variables, and the shared ones by their usual names."""

    model_config = SettingsConfigDict(env_prefix="DRIFT_", frozen=True, populate_by_name=True)

    kafka_bootstrap_servers: str = Field(
        default="kafka:9092", validation_alias="KAFKA_BOOTSTRAP_SERVERS"
    )
    database_url: str = Field(
        default="postgresql://homeostat@postgres/homeostat", validation_alias="DATABASE_URL"
    )
    state_dir: Path = Field(
        default=Path(".homeostat/state/drift"), validation_alias="HOMEOSTAT_STATE_DIR"
    )
    host: str = "127.0.0.1"
    port: int = 8004
    commit_interval: timedelta = timedelta(milliseconds=500)  # at most, under load
    max_pipelines: int = 50  # each holds one database connection
