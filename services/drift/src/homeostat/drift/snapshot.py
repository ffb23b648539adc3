"""A state as bytes and back. Slices are left out: they are kept one by one, because few change at
a time."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from homeostat.drift.monitor import State

_FAST = 1  # zlib's level: histograms are mostly zeros


def _encode_array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    raise NotImplementedError(f"{type(value).__name__} has no place in a state")


def _decode_array(_type: type, value: Any) -> Any:
    kind, shape, content = value
    return np.frombuffer(content, kind).reshape(shape)


def encode(state: State) -> bytes:
    """Everything but the slices."""
    packed = msgspec.msgpack.encode(replace(state, slices={}), enc_hook=_encode_array)
    return zlib.compress(packed, _FAST)


def decode(content: bytes) -> State:
    return msgspec.msgpack.decode(zlib.decompress(content), type=State, dec_hook=_decode_array)
