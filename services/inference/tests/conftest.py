"""A workshop for models: a pipeline, tiny classifiers trained on the spot, a key to sign them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import xgboost as xgb
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from homeostat.common import artifacts
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import Pipeline
from homeostat.common.schemas.models import (
    Artifact,
    Distribution,
    Golden,
    ModelVersion,
    Reference,
    VersionState,
)


def pipeline_named(name: str, **changes: Any) -> Pipeline:
    return Pipeline.model_validate(
        {
            "name": name,
            "owner": "tests",
            "source": {
                "id": "id",
                "time": "at",
                "key": "customer",
                "label": {"field": "bad", "maturity": "1d"},
            },
            "unit": "customer",
            "fields": {
                "id": "string",
                "customer": "string",
                "terminal": {"type": "string", "optional": True},
                "amount": {"type": "decimal", "scale": 0.01, "minimum": 0},
            },
            "features": {
                "amount_now": {"expression": "amount"},
                "customer_mean_1h": {
                    "entity": "customer",
                    "aggregate": "mean(amount)",
                    "window": "sliding 1h",
                },
                "customer_count_1h": {
                    "entity": "customer",
                    "aggregate": "count()",
                    "window": "sliding 1h",
                    "missing": 0,
                },
                "terminal_count_1h": {
                    "entity": "terminal",
                    "aggregate": "count()",
                    "window": "sliding 1h",
                },
            },
            **changes,
        }
    )


@dataclass(frozen=True)
class Trained:
    """An announced version, its file, and the booster to compare with."""

    version: ModelVersion
    content: bytes
    booster: xgb.Booster

    def expected(self, values: Any) -> Any:
        return self.booster.inplace_predict(np.array(values, np.float64)).astype(np.float64)


class Workshop:
    def __init__(self, folder: Path) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.public_key_file = folder / "models.pub"
        self.public_key_file.write_bytes(
            self.key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )

    def train(self, pipeline: Pipeline, number: int, *, rounds: int = 5) -> Trained:
        """A classifier whose scores differ from those of every other number."""
        view = FeatureView(pipeline)
        random = np.random.default_rng(number)
        values = random.normal(20, 15, (400, len(view.feature_names)))
        values[random.random(values.shape) < 0.1] = np.nan
        labels = (np.nan_to_num(values[:, 0]) + random.normal(0, 5, 400) > 20).astype(float)
        booster = xgb.train(
            {
                "objective": "binary:logistic",
                "max_depth": 3,
                "nthread": 1,
                "seed": number,
                "base_score": 0.05 + 0.9 * random.random(),
            },
            xgb.DMatrix(values, labels, feature_names=list(view.feature_names)),
            num_boost_round=rounds,
        )
        content = bytes(booster.save_raw("json"))
        probes = values[:8]
        golden = Golden(
            vectors=tuple(
                tuple(None if np.isnan(value) else value for value in row)
                for row in probes.tolist()
            ),
            scores=tuple(booster.inplace_predict(probes).tolist()),
        )
        return Trained(self.announce(pipeline, number, content, golden=golden), content, booster)

    def announce(
        self, pipeline: Pipeline, number: int, content: bytes, *, golden: Golden
    ) -> ModelVersion:
        """A signed announcement of any bytes, hostile ones included."""
        view = FeatureView(pipeline)
        digest = hashlib.sha256(content).hexdigest()
        nothing = Distribution((), (0,))
        return self.sign(
            ModelVersion(
                pipeline=pipeline.name,
                version=number,
                state=VersionState.APPROVED,
                created_at=0,
                available_at=0,
                cause="test",
                artifact=Artifact(digest, len(content), uri=f"file:///nowhere/{digest}"),
                features=view.feature_names,
                definition_hash=view.definition_hash,
                threshold=0.5,
                golden=golden,
                reference=Reference({}, nothing, 0.5, {}),
            )
        )

    def sign(self, version: ModelVersion) -> ModelVersion:
        return artifacts.sign(version, self.key)

    def altered(self, trained: Trained, **changes: Any) -> ModelVersion:
        """The announcement with something else in it, signed again."""
        return self.sign(msgspec.structs.replace(trained.version, **changes))


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="session")
def make_pipeline() -> Callable[..., Pipeline]:
    return pipeline_named
