"""A pipeline as it travels: canonical JSON, addressed by the hash of its content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import msgspec

from homeostat.common.pipeline.spec import Pipeline


class _Envelope(msgspec.Struct, frozen=True):
    generation: int
    content_hash: str
    pipeline: msgspec.Raw


@dataclass(frozen=True)
class Snapshot:
    """One generation of a pipeline.

    Services read the same bytes, so they agree on the same hash.
    """

    pipeline: Pipeline
    generation: int

    @cached_property
    def content(self) -> bytes:
        """Compact JSON in the order of the file, the policy inlined.

        Keys are not sorted: the order of features is the order of the model's columns.
        """
        document = self.pipeline.model_dump(mode="json", by_alias=True)
        return json.dumps(document, separators=(",", ":")).encode()

    @cached_property
    def content_hash(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def encode(self) -> bytes:
        envelope = _Envelope(self.generation, self.content_hash, msgspec.Raw(self.content))
        return msgspec.json.encode(envelope)

    @classmethod
    def decode(cls, value: bytes) -> Snapshot:
        """Read a snapshot record; a content that does not match its hash is refused.

        Raises:
            ValueError: unreadable, or altered on the way.
        """
        envelope = msgspec.json.decode(value, type=_Envelope)
        content = bytes(envelope.pipeline)
        if hashlib.sha256(content).hexdigest() != envelope.content_hash:
            raise ValueError("the snapshot's content does not match its hash")
        return cls(Pipeline.model_validate_json(content), envelope.generation)
