"""The definitions of a pipeline's features that are kept up to date, as the topic tells of them.

A definition is what a model was trained on: it is never edited in place. A changed pipeline file is
a new one, folded from the log beside those that models still pin.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import msgspec

from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import Snapshot


class _Envelope(msgspec.Struct, frozen=True):
    is_live: bool
    snapshot: msgspec.Raw


@dataclass(frozen=True)
class Definition:
    """A generation of a pipeline, for its features; ``is_live`` once they were folded up to now."""

    snapshot: Snapshot
    is_live: bool

    @cached_property
    def view(self) -> FeatureView:
        return FeatureView(self.snapshot.pipeline)

    @property
    def key(self) -> str:
        return key_of(self.snapshot.pipeline.name, self.view.definition_hash)

    def encode(self) -> bytes:
        return msgspec.json.encode(_Envelope(self.is_live, msgspec.Raw(self.snapshot.encode())))

    @classmethod
    def decode(cls, value: bytes) -> Definition:
        """Read a record.

        Raises:
            ValueError: unreadable, or altered on the way.
        """
        envelope = msgspec.json.decode(value, type=_Envelope)
        return cls(Snapshot.decode(bytes(envelope.snapshot)), envelope.is_live)


def key_of(pipeline: str, definition_hash: str) -> str:
    """The key of a definition's record."""
    return f"{pipeline}/{definition_hash}"


def split_key(key: str) -> tuple[str, str]:
    """The pipeline and the definition hash of a record's key."""
    pipeline, _, definition_hash = key.rpartition("/")
    return pipeline, definition_hash
