"""How old events are when a read can first find them: from their event time, in buckets."""

from __future__ import annotations

import numpy as np

BUCKET_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_BOUNDS_MS = np.array(BUCKET_SECONDS) * 1000

I64 = np.ndarray[tuple[int], np.dtype[np.int64]]


class Freshness:
    """Counts of one partition since its worker has it."""

    def __init__(self) -> None:
        self._folded: list[I64] = []  # event times of what is not readable yet
        self._counts = np.zeros(len(BUCKET_SECONDS) + 1, np.int64)
        self.sum_seconds = 0.0

    @property
    def counts(self) -> list[int]:
        """Events by bucket, the last one for those beyond every bound."""
        counts: list[int] = self._counts.tolist()
        return counts

    def folded(self, times: I64) -> None:
        """Events with these times (epoch ms) are in the state."""
        self._folded.append(times)

    def take(self) -> list[I64]:
        """What was folded since the last call: it becomes readable together."""
        folded, self._folded = self._folded, []
        return folded

    def put_back(self, taken: list[I64]) -> None:
        """What ``take`` gave could not be written yet."""
        self._folded = [*taken, *self._folded]

    def readable(self, taken: list[I64], now: int) -> None:
        """What ``take`` gave can be read since ``now`` (epoch ms)."""
        if not taken:
            return
        ages = np.maximum(now - np.concatenate(taken), 0)
        buckets = np.searchsorted(_BOUNDS_MS, ages)
        self._counts += np.bincount(buckets, minlength=self._counts.size)
        self.sum_seconds += float(ages.sum()) / 1000
