"""Arrow record batches as Kafka messages: one IPC stream each, small enough for the topic."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from homeostat.common.errors import InvalidEvent, Reason
from homeostat.common.topics import ARROW_MESSAGE_BYTES

CONTENT_TYPE = b"application/vnd.apache.arrow.stream"


def encode_batch(batch: pa.RecordBatch) -> Iterator[bytes]:
    """Serialise a batch, halved until every part is below ``ARROW_MESSAGE_BYTES``."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    message = sink.getvalue()
    if len(message) <= ARROW_MESSAGE_BYTES or batch.num_rows <= 1:
        yield message.to_pybytes()
        return
    half = batch.num_rows // 2
    yield from encode_batch(batch.slice(0, half))
    yield from encode_batch(batch.slice(half))


def decode_batch(value: bytes) -> tuple[pa.RecordBatch, dict[str, str]]:
    """The one batch of a message, and its metadata.

    Raises:
        InvalidEvent: not an Arrow stream with one batch.
    """
    try:
        with pa.ipc.open_stream(value) as reader:
            batch = reader.read_next_batch()
    except (pa.ArrowInvalid, StopIteration, OSError) as error:
        raise InvalidEvent(
            f"not an Arrow record batch: {error}", reason=Reason.UNPARSABLE
        ) from error
    metadata = batch.schema.metadata or {}
    return batch, {key.decode(): text.decode() for key, text in metadata.items()}
