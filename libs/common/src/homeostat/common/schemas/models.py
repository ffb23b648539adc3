"""Model versions as announced: everything a replica needs to load, check and watch one."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class VersionState(StrEnum):
    REGISTERED = "registered"  # passed every gate, waits for approval
    APPROVED = "approved"  # may be rolled out
    REFUSED = "refused"
    REJECTED = "rejected"  # rolled back; the same digest is not offered again


class Artifact(msgspec.Struct, frozen=True):
    """A content-addressed model file. Only formats that run no code."""

    sha256: str
    size_bytes: int
    uri: str
    format: str = "xgboost-json"
    signature: str = ""  # base64 Ed25519 over the manifest, see common.artifacts


class Golden(msgspec.Struct, frozen=True):
    """Vectors and the scores that the trainer saw for them; a loader must reproduce them."""

    vectors: tuple[tuple[float | None, ...], ...]
    scores: tuple[float, ...]
    tolerance: float = 1e-5


class Distribution(msgspec.Struct, frozen=True):
    """A reference histogram: ``counts[i]`` values lie in ``[edges[i-1], edges[i])``, ends open."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]  # len(edges) + 1
    missing: int = 0


class Reference(msgspec.Struct, frozen=True):
    """What the model was trained on, for the drift service to compare with."""

    features: dict[str, Distribution]
    scores: Distribution
    positive_share: float
    metrics: dict[str, float]  # on the newest mature slice, at the chosen threshold
    matured_at: int = 0  # epoch ms: end of that slice


class Gate(msgspec.Struct, frozen=True):
    """One policy rule as it was judged."""

    rule: str
    measure: str
    value: float | None
    bound: str
    passed: bool


class ModelVersion(msgspec.Struct, frozen=True):
    """One version; ``features`` fixes names and order of the input vector."""

    pipeline: str
    version: int
    state: VersionState
    created_at: int  # epoch ms, pipeline time at which the run was triggered
    available_at: int  # epoch ms: created_at plus the declared cost of training
    cause: str
    artifact: Artifact
    features: tuple[str, ...]
    definition_hash: str
    threshold: float
    golden: Golden
    reference: Reference
    gates: tuple[Gate, ...] = ()
    training: dict[str, str] = {}
    mlflow_run: str | None = None
