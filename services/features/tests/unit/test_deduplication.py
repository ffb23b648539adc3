"""Ids are remembered exactly, for as long as was promised, whatever the clock does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.features import deduplication
from homeostat.features.deduplication import RecentIds

HORIZON_MS = 1_000
BATCHES = st.lists(
    st.tuples(st.lists(st.integers(0, 30), max_size=12), st.integers(0, 5_000)), max_size=30
)


@pytest.fixture(scope="module", autouse=True)
def small_chunks() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(deduplication, "CHUNK_IDS", 4)
    yield
    patch.undo()


def hashes(ids: list[int]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(ids, np.uint64)


def first_times(ids: list[int], known: set[int]) -> list[bool]:
    """Which are new; 0 stands for a free place, and is taken for 1."""
    found = []
    for name in (max(1, each) for each in ids):
        found.append(name not in known)
        known.add(name)
    return found


@settings(max_examples=200, deadline=None)
@given(batches=BATCHES, restarts=st.sets(st.integers(0, 29)))
def test_without_an_end_to_memory_it_is_a_set_across_restarts(
    batches: list[tuple[list[int], int]], restarts: set[int]
) -> None:
    ids, known = RecentIds(horizon_ms=10**9, capacity=10**9), set[int]()
    kept: dict[int, bytes] = {}
    for number, (batch, now) in enumerate(batches):
        assert ids.admit(hashes(batch), now).tolist() == first_times(batch, known)
        kept |= {chunk: packed for chunk, packed in ids.take_changed() if packed is not None}
        if number in restarts:
            ids = RecentIds(horizon_ms=10**9, capacity=10**9)
            ids.restore(kept)
    assert len(ids) == len(known)


@settings(max_examples=200, deadline=None)
@given(batches=BATCHES)
def test_no_id_is_forgotten_before_its_time_even_when_the_clock_jumps_back(
    batches: list[tuple[list[int], int]],
) -> None:
    ids, last = RecentIds(horizon_ms=HORIZON_MS, capacity=10**9), dict[int, int]()
    latest = 0
    for batch, now in batches:
        is_new = ids.admit(hashes(batch), now).tolist()
        for name, new in zip((max(1, each) for each in batch), is_new, strict=True):
            # Forgotten only once the clock has been a horizon past its last coming.
            assert new == (name not in last) or (new and last[name] < latest - HORIZON_MS)
            if new:
                last[name] = now
        latest = max(latest, now)


def test_beyond_its_capacity_the_oldest_are_given_up_and_counted() -> None:
    ids = RecentIds(horizon_ms=10**9, capacity=8)

    for first in range(1, 17, 4):
        ids.admit(hashes([*range(first, first + 4)]), first)

    assert (len(ids), ids.forgotten_early) == (8, 8)
    assert ids.admit(hashes([1, 16]), 20).tolist() == [
        True,
        False,
    ]  # the ninth: one chunk more
    assert [number for number, packed in ids.take_changed() if packed is None] == [0, 1, 2]
