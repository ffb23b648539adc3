"""What unit and integration tests of the router share."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import pytest

from homeostat.common.pipeline import Pipeline
from homeostat.common.schemas.models import (
    Artifact,
    Distribution,
    Golden,
    ModelVersion,
    Reference,
    VersionState,
)

PipelineFactory = Callable[..., Pipeline]
VersionFactory = Callable[..., ModelVersion]


@pytest.fixture
def make_pipeline() -> PipelineFactory:
    """A small pipeline under a name of its own; ``rollout`` and other members may be given."""

    def make(**members: Any) -> Pipeline:
        document = {
            "apiVersion": "homeostat/v1",
            "name": f"shop-{secrets.token_hex(4)}",
            "owner": "tests",
            "source": {
                "id": "order_id",
                "time": "ordered_at",
                "key": "customer_id",
                "label": {"field": "is_returned", "maturity": "1d"},
            },
            "unit": "customer_id",
            "fields": {
                "order_id": "string",
                "customer_id": "string",
                "amount": {"type": "decimal", "scale": 0.01, "minimum": 0},
            },
            "features": {
                "orders_1h": {
                    "entity": "customer_id",
                    "aggregate": "count()",
                    "window": "sliding 1h",
                },
                "amount_mean_1h": {
                    "entity": "customer_id",
                    "aggregate": "mean(amount)",
                    "window": "sliding 1h",
                },
            },
            **members,
        }
        return Pipeline.model_validate(document)

    return make


@pytest.fixture
def make_version() -> VersionFactory:
    """An approved version; its digest follows its number unless told."""

    def make(pipeline: str, version: int, **members: Any) -> ModelVersion:
        digest = members.pop("digest", f"{version:064x}")
        empty = Distribution(edges=(0.5,), counts=(1, 1))
        return ModelVersion(
            **{
                "pipeline": pipeline,
                "version": version,
                "state": VersionState.APPROVED,
                "created_at": 0,
                "available_at": 0,
                "cause": "test",
                "artifact": Artifact(sha256=digest, size_bytes=1, uri=f"redis:{digest}"),
                "features": ("orders_1h", "amount_mean_1h"),
                "definition_hash": "d" * 64,
                "threshold": 0.5,
                "golden": Golden(vectors=(), scores=()),
                "reference": Reference(
                    features={}, scores=empty, positive_share=0.1, metrics={"f1": 0.8}
                ),
                **members,
            }
        )

    return make
