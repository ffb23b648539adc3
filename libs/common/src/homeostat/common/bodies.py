"""Request bodies of every front door: one JSON object, a JSON array, or NDJSON, cut into rows."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from starlette.types import Message, Receive

from homeostat.common.errors import (
    UNREADABLE,
    BodyTooLarge,
    InvalidInput,
    Unparsable,
    why_unreadable,
)

_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
_value = msgspec.json.Decoder(msgspec.Raw).decode


@dataclass(frozen=True, slots=True)
class Body:
    """The rows of a request as raw JSON; a single row is answered for itself."""

    rows: list[bytes]
    is_single: bool


async def read(receive: Receive, *, limit: int, announced: str = "") -> bytes | None:
    """The whole body; ``None`` when the caller has gone.

    ``announced`` is the header ``content-length``.

    Raises:
        BodyTooLarge: as soon as it is known.
    """
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit)
    receive = bounded(receive, limit)
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def bounded(receive: Receive, limit: int) -> Receive:
    """``receive`` for one request, which raises BodyTooLarge once its body is over ``limit``."""
    size = 0

    async def receive_bounded() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:
            raise _too_large(limit)
        return message

    return receive_bounded


def split(body: bytes, content_type: str, *, max_rows: int) -> Body:
    """Cut a body into rows without reading them; a row may still turn out not to be JSON.

    Raises:
        Unparsable: empty, or an array that is not JSON.
        InvalidInput: more than ``max_rows`` rows.
    """
    text = body.strip()
    if not text:
        raise Unparsable("the body is empty", fix="send a JSON object, an array, or NDJSON")
    if "ndjson" in content_type or "jsonl" in content_type:
        rows = _lines(text)
    elif text.startswith(b"["):
        rows = _elements(text)
    elif b"\n" in text and _is_object((lines := _lines(text))[0]):
        rows = lines
    else:
        return Body([text], is_single=True)
    if len(rows) > max_rows:
        raise InvalidInput(
            f"{len(rows)} rows in one request", fix=f"send at most {max_rows} at a time"
        )
    return Body(rows, is_single=False)


def _elements(text: bytes) -> list[bytes]:
    try:
        return [bytes(element) for element in _array(text)]
    except UNREADABLE as error:
        raise Unparsable(f"the body is not a JSON array: {why_unreadable(error)}") from error


def _lines(text: bytes) -> list[bytes]:
    return [line for line in text.split(b"\n") if line.strip()]


def _is_object(line: bytes) -> bool:
    """Whether a line is a whole object: then the next one begins another row."""
    try:
        return line.lstrip().startswith(b"{") and bool(_value(line))
    except UNREADABLE:
        return False


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit} bytes", fix="send smaller batches")
