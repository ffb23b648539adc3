"""The state of a pipeline's rollout as every router and scorer sees it, and the guards' trips."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from homeostat.common.assignment import Split, Variant, bucket


class Phase(StrEnum):
    """Where a challenger is. From each phase it may be rolled back."""

    IDLE = "idle"
    SHADOW = "shadow"
    EXPERIMENT = "experiment"
    CANARY = "canary"
    CHAMPION = "champion"
    ROLLED_BACK = "rolled_back"


class Trip(msgspec.Struct, frozen=True):
    """A router's guard took a challenger to zero by itself: a record, never a request."""

    pipeline: str
    rollout: str
    version: int
    reason: str
    at: int  # epoch ms, pipeline time
    router: str

    @property
    def key(self) -> str:
        return f"{self.rollout}/{self.version}"


class RolloutSnapshot(msgspec.Struct, frozen=True):
    """A whole, self-contained snapshot; the highest (epoch, generation) wins, anything older is
    ignored.

    ``seen_trips`` lists the trips that the judge has decided on. A router ignores every weight for
    a version whose trip is not in it: the guard's word stands until the judge has heard it.
    """

    pipeline: str
    rollout: str  # id and salt: one per challenger
    generation: int
    epoch: int
    phase: Phase
    champion: int | None
    challenger: int | None = None
    share: float = 0.0  # of live traffic answered by the challenger, 0-1
    holdback: float = 0.0
    is_shadowing: bool = False
    seen_trips: tuple[str, ...] = ()
    reason: str = ""
    updated_at: int = 0

    @property
    def order(self) -> tuple[int, int]:
        return self.epoch, self.generation

    @property
    def split(self) -> Split:
        share = self.share if self.challenger is not None else 0.0
        return Split(challenger=share, holdback=self.holdback)

    def assign(self, unit: str) -> Variant:
        """The variant of a unit: the same on every path, replica and restart."""
        return self.split.variant(bucket(unit, salt=self.rollout))

    def version(self, variant: Variant) -> int | None:
        return self.champion if variant is Variant.CHAMPION else self.challenger
