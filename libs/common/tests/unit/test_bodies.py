"""How a request body is read, and cut into rows."""

import pytest
from starlette.types import Message, Receive

from homeostat.common.bodies import Body, read, split
from homeostat.common.errors import BodyTooLarge, InvalidInput, Unparsable


def test_an_object_is_a_single_row_whatever_the_content_type_says() -> None:
    assert split(b' {"a": 1}\n', "", max_rows=9) == Body([b'{"a": 1}'], is_single=True)


def test_a_pretty_printed_object_is_one_row() -> None:
    assert split(b'{\n "a": 1\n}', "application/json", max_rows=9).is_single


def test_an_array_gives_its_elements() -> None:
    body = split(b'[{"a": 1}, {"b": [2, 3]}]', "application/json", max_rows=9)

    assert body == Body([b'{"a": 1}', b'{"b": [2, 3]}'], is_single=False)


def test_lines_are_told_by_content_type_or_by_shape() -> None:
    lines = b'{"a": 1}\n\n{"a": 2}\n'

    for content_type in ("application/x-ndjson", "application/json"):
        assert split(lines, content_type, max_rows=9).rows == [b'{"a": 1}', b'{"a": 2}']


def test_a_bad_line_is_a_row_of_its_own() -> None:
    body = split(b'{"a": 1}\n{broken\n', "application/x-ndjson", max_rows=9)

    assert body.rows == [b'{"a": 1}', b"{broken"]


@pytest.mark.parametrize("body", [b"", b"  \n", b"[1, 2", b"[" * 100_000], ids=lambda b: b[:6])
def test_an_empty_body_and_a_broken_array_are_unparsable(body: bytes) -> None:
    with pytest.raises(Unparsable):
        split(body, "application/json", max_rows=9)


@pytest.mark.parametrize("body", [b"{broken", b"hello", b'{"a": 1} x', b"{broken\n{}", b"1\n2"])
def test_whatever_else_is_no_json_is_left_to_who_reads_the_row(body: bytes) -> None:
    assert split(body, "application/json", max_rows=9) == Body([body], is_single=True)


async def test_a_body_is_read_in_its_parts() -> None:
    assert await read(sender(b"[1,", b"2]"), limit=5) == b"[1,2]"


@pytest.mark.parametrize(("announced", "parts"), [("6", [b""]), ("", [b"123", b"456"])])
async def test_a_body_above_the_limit_is_refused_as_soon_as_that_is_known(
    announced: str, parts: list[bytes]
) -> None:
    with pytest.raises(BodyTooLarge, match="larger than 5 bytes"):
        await read(sender(*parts), limit=5, announced=announced)


async def test_a_caller_who_has_gone_sends_no_body() -> None:
    assert await read(sender(), limit=5) is None


def sender(*parts: bytes) -> Receive:
    """What a server hands on: the parts, and then that the caller has gone."""
    messages: list[Message] = [
        {"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts
    ]
    messages.append({"type": "http.disconnect"})
    messages.reverse()

    async def receive() -> Message:
        return messages.pop()

    return receive


def test_too_many_rows_are_refused_with_the_limit() -> None:
    with pytest.raises(InvalidInput, match="3 rows"):
        split(b"[1, 2, 3]", "application/json", max_rows=2)
