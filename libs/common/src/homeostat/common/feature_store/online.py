"""Keys and values of the online store: the features service writes them, inference reads them.

The store holds window state, not answers: a row is evaluated at the time of the read. Keys carry
the definition hash, so two definitions live side by side while models still pin the old one.
"""

from __future__ import annotations

import msgspec

from homeostat.common.topics import HASH_LENGTH
from homeostat.common.windows.packing import HEADER_BYTES


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """How far a partition of an entity's topic has been folded into the rows beside this key."""

    epoch: int  # grows with each assignment of the partition
    offset: int  # next offset to fold
    current_at: int  # epoch ms, wall clock: all that the topic held then is folded
    pipeline_time: int  # epoch ms, newest intake that was folded


def row_key(pipeline: str, definition_hash: str, entity: str, key: str) -> bytes:
    return f"h:{pipeline}:{definition_hash[:HASH_LENGTH]}:{entity}:{key}".encode()


def progress_key(pipeline: str, definition_hash: str, entity: str, partition: int) -> bytes:
    digest = definition_hash[:HASH_LENGTH]
    return f"h:{pipeline}:{digest}:progress:{entity}:{partition}".encode()


def all_keys(pipeline: str, definition_hash: str) -> bytes:
    """The pattern of every key of a definition; the names of pipelines need no escape."""
    return f"h:{pipeline}:{definition_hash[:HASH_LENGTH]}:*".encode()


encode_progress = msgspec.msgpack.Encoder().encode
decode_progress = msgspec.msgpack.Decoder(Progress).decode


def newest_event_time(row: bytes) -> int:
    """Epoch ms of the newest event in a packed row, one that could be read."""
    zigzag, shift = 0, 0
    for byte in row[HEADER_BYTES:]:
        zigzag |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
    return (zigzag >> 1) ^ -(zigzag & 1)
