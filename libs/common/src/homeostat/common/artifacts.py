"""Model files: addressed by content, signed by the trainer, checked before anything parses them.

The signature covers what decides a model's answers (bytes, columns and their order, threshold,
golden vectors, definition hash), so a file that is swapped, or announced for another pipeline, is
refused.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from homeostat.common.errors import HomeostatError, InvalidInput
from homeostat.common.schemas.models import ModelVersion


class ArtifactRefused(InvalidInput):
    """The file or its announcement is not what the trainer signed."""

    code = "ARTIFACT_REFUSED"


def redis_key(sha256: str) -> str:
    """Where the bytes of an artifact are cached, so that replicas start without the registry."""
    return f"artifact:{sha256}"


def signed_bytes(version: ModelVersion) -> bytes:
    """The part of an announcement that the signature covers, in canonical JSON."""
    artifact = version.artifact
    document = {
        "pipeline": version.pipeline,
        "version": version.version,
        "sha256": artifact.sha256,
        "size_bytes": artifact.size_bytes,
        "format": artifact.format,
        "features": version.features,
        "definition_hash": version.definition_hash,
        "threshold": version.threshold,
        "golden": version.golden,
    }
    return msgspec.json.encode(document, order="deterministic")


def sign(version: ModelVersion, key: Ed25519PrivateKey) -> ModelVersion:
    """The announcement with its artifact's signature filled in."""
    signature = base64.b64encode(key.sign(signed_bytes(version))).decode()
    artifact = msgspec.structs.replace(version.artifact, signature=signature)
    return msgspec.structs.replace(version, artifact=artifact)


def verify(version: ModelVersion, content: bytes, key: Ed25519PublicKey) -> None:
    """Check size, digest and signature, in this order of cost.

    Raises:
        ArtifactRefused: one of them does not match.
    """
    name = f"{version.pipeline} version {version.version}"
    artifact = version.artifact
    if len(content) != artifact.size_bytes:
        raise ArtifactRefused(
            f"{name}: the file has {len(content)} bytes, announced are {artifact.size_bytes}"
        )
    if hashlib.sha256(content).hexdigest() != artifact.sha256:
        raise ArtifactRefused(f"{name}: the file's SHA-256 is not the announced one")
    try:
        key.verify(base64.b64decode(artifact.signature, validate=True), signed_bytes(version))
    except (InvalidSignature, ValueError) as error:
        raise ArtifactRefused(
            f"{name}: the signature does not match", fix="check MODEL_VERIFY_KEY_FILE"
        ) from error


def new_private_key() -> str:
    """A key that signs models, as PEM."""
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def public_key_of(key: Ed25519PrivateKey) -> str:
    """What verifies the signatures of ``key``, as PEM."""
    public = key.public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def load_private_key(path: Path) -> Ed25519PrivateKey:
    key = load_pem_private_key(_read_key(path), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise HomeostatError(f"{path} holds no Ed25519 private key")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    key = load_pem_public_key(_read_key(path))
    if not isinstance(key, Ed25519PublicKey):
        raise HomeostatError(f"{path} holds no Ed25519 public key")
    return key


def _read_key(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise HomeostatError(f"the key file {path} cannot be read", fix=str(error)) from error
