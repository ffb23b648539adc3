"""What a header says, whoever wrote it."""

from __future__ import annotations

import pytest

from homeostat.common import kafka


def test_a_replayed_record_says_when_it_became_available() -> None:
    assert kafka.available_at([("available_at", b"1767225600000")]) == 1_767_225_600_000
    assert kafka.available_at([("other", b"1")]) is None


@pytest.mark.parametrize("value", [b"", b"x", b"-1", b"1.5", "²".encode(), b"9" * 5_000, b"9" * 17])
def test_a_header_that_holds_no_number_is_as_good_as_none(value: bytes) -> None:
    assert kafka.available_at([("available_at", value)]) is None


@pytest.mark.parametrize("value", [None, b"", b"7", b"7:", b":7", b"a:b", b"1:2:3", b"1:-2"])
def test_a_source_that_is_no_position_is_as_good_as_none(value: bytes | None) -> None:
    assert kafka.position(value) is None
    assert kafka.position(b"3:17") == (3, 17)
