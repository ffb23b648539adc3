"""Feast: fifty numbers of each customer written to Redis, then its server in place of this."""

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource
from feast.types import Float64
from feast.value_type import ValueType

CONFIGURATION = """\
project: bench
registry: registry.db
provider: local
online_store: {{type: redis, connection_string: "{redis},db=1"}}
offline_store: {{type: file}}
entity_key_serialization_version: 3
"""

FEATURES = os.environ["BENCH_FEATURES"].split(",")
CUSTOMERS = int(os.environ["BENCH_CUSTOMERS"])

os.chdir(os.environ["BENCH_FOLDER"])
Path("feature_store.yaml").write_text(CONFIGURATION.format(redis=os.environ["BENCH_REDIS"]))
customer = Entity(name="customer", join_keys=["customer"], value_type=ValueType.STRING)
view = FeatureView(
    name="payments",
    entities=[customer],
    ttl=timedelta(days=1),
    schema=[Field(name=name, dtype=Float64) for name in FEATURES],
    source=FileSource(path="nowhere.parquet", timestamp_field="event_timestamp"),
)
store = FeatureStore(".")
store.apply([customer, view])
rows = pd.DataFrame(np.random.default_rng(4).random((CUSTOMERS, len(FEATURES))), columns=FEATURES)
rows["customer"] = [f"c{number}" for number in range(CUSTOMERS)]
rows["event_timestamp"] = datetime.now(UTC)
store.write_to_online_store("payments", rows)
feast = str(Path(sys.executable).with_name("feast"))
served = ["serve", "--host", "127.0.0.1", "--port", os.environ["BENCH_PORT"], "--no-access-log"]
served += ["--max-requests", "0", "--max-requests-jitter", "0"]  # no restart amid the measurement
os.execv(feast, [feast, *served])  # noqa: S606 - the arguments are ours
