"""The guard: within a router, within a second, and only ever downwards.

It counts a challenger's failure only where the champion then answered the same request: a cause
that both share is the judge's to weigh, and no reason to blame the version.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

WINDOW = 20  # requests
MAX_CONSECUTIVE = 5
MAX_FAILED = 8
MAX_NONSENSE = 2


class Outcome(StrEnum):
    """How the challenger did on one request; the values stand in exposures."""

    OK = "assigned"
    ERROR = "error"
    TIMEOUT = "timeout"
    NON_FINITE = "non_finite"  # or out of range, or of the wrong shape: never right


@dataclass(frozen=True)
class Guard:
    """The last ``WINDOW`` outcomes of one (rollout, version), newest last."""

    recent: tuple[Outcome, ...] = ()

    def after(self, outcome: Outcome) -> Guard:
        return Guard((*self.recent[1 - WINDOW :], outcome))

    @property
    def trip(self) -> str | None:
        """Why the challenger must not be asked again, if it must not."""
        failed = [outcome for outcome in self.recent if outcome is not Outcome.OK]
        if self.recent.count(Outcome.NON_FINITE) >= MAX_NONSENSE:
            return f"{MAX_NONSENSE} scores were not numbers between 0 and 1"
        last = self.recent[-MAX_CONSECUTIVE:]
        if len(last) == MAX_CONSECUTIVE and Outcome.OK not in last:
            return f"{MAX_CONSECUTIVE} failures in a row, the last one: {last[-1]}"
        if len(failed) >= MAX_FAILED:
            return f"{len(failed)} of the last {len(self.recent)} requests failed"
        return None
