"""Configuration of the trainer service."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read from ``TRAINER_*`` environment variables, and the shared ones by their usual names."""

    model_config = SettingsConfigDict(env_prefix="TRAINER_", frozen=True, populate_by_name=True)

    kafka_bootstrap_servers: str = Field(
        default="kafka:9092", validation_alias="KAFKA_BOOTSTRAP_SERVERS"
    )
    database_url: SecretStr = Field(
        default=SecretStr("postgresql://homeostat@postgres:5432/homeostat"),
        validation_alias="DATABASE_URL",
    )
    redis_url: SecretStr = Field(
        default=SecretStr("redis://redis:6379/0"), validation_alias="REDIS_URL"
    )
    mlflow_tracking_uri: str | None = Field(default=None, validation_alias="MLFLOW_TRACKING_URI")
    offline_store_path: Path = Field(
        default=Path(".homeostat/offline"), validation_alias="OFFLINE_STORE_PATH"
    )
    state_dir: Path = Field(
        default=Path(".homeostat/state/trainer"), validation_alias="HOMEOSTAT_STATE_DIR"
    )
    signing_key_file: Path | None = Field(default=None, validation_alias="MODEL_SIGNING_KEY_FILE")
    features_url: str = "http://features:8002"
    host: str = "127.0.0.1"
    port: int = 8005
    threads: int = 1  # of XGBoost; one gives the same model on every machine
    memory_limit_bytes: int = 4_000_000_000  # of a training process
    time_limit: timedelta = timedelta(minutes=30)  # of a training process, whatever its budget
    features_patience: timedelta = timedelta(minutes=10)  # for the offline store's commit
    max_attempts: int = 3  # of a run that is interrupted again and again
