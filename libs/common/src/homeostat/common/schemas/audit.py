"""One decision in a service's hash chain."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec


class Record(msgspec.Struct, frozen=True):
    """``previous`` is the ``digest`` of the service's record before; the first one's is empty."""

    service: str
    pipeline: str
    action: str
    at: int  # epoch ms, pipeline time
    evidence: dict[str, Any]
    sequence: int
    previous: str = ""

    @property
    def digest(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()
