"""One feature's verdict from all three distances: effect and evidence, else it is stable."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from homeostat.drift.detectors import js, ks, psi
from homeostat.drift.detectors.histograms import Counts, coarse_starts, coarsen

# The p-value below which chance is ruled out, for each statistic of each feature of each window.
EVIDENCE = 1e-6


class Verdict(StrEnum):
    STABLE = "stable"
    DRIFTED = "drifted"
    INSUFFICIENT = "insufficient"  # too few samples, or nothing to compare with: never "no drift"


@dataclass(frozen=True)
class Reading:
    """One statistic: the effect with the mean of pure noise taken off, its limit, and the
    evidence."""

    statistic: str
    value: float
    limit: float
    p_value: float

    @property
    def is_beyond(self) -> bool:
        return self.value > self.limit and self.p_value < EVIDENCE


@dataclass(frozen=True)
class Comparison:
    verdict: Verdict
    readings: tuple[Reading, ...] = ()

    @property
    def worst(self) -> Reading | None:
        """The reading that lies furthest beyond (or nearest to) its limit."""
        return max(self.readings, key=lambda item: item.value / item.limit, default=None)


@dataclass(frozen=True)
class Limits:
    """Effect sizes above which a distribution counts as drifted."""

    psi: float
    js: float
    ks: float


@dataclass(frozen=True)
class Histogram:
    """A reference's counts, with the coarser bins of PSI and JS worked out once."""

    counts: Counts
    size: int
    starts: Counts
    coarse: Counts

    @classmethod
    def of(cls, counts: Counts) -> Histogram:
        starts = coarse_starts(counts)
        return cls(counts, int(counts.sum()), starts, coarsen(counts, starts))


def compare(
    reference: Histogram, current: Counts, limits: Limits, *, min_samples: int
) -> Comparison:
    """Compare two histograms over the same bins.

    Drifted means: some statistic is beyond its limit after the mean of its sampling noise is taken
    off, *and* chance is ruled out. KS uses all bins; PSI and JS use coarser ones, which have enough
    in each.
    """
    n, m = int(current.sum()), reference.size
    if n < min_samples or m == 0 or len(reference.counts) < 2:
        return Comparison(Verdict.INSUFFICIENT)
    sizes = {"reference_size": m, "current_size": n}
    p, q, bins = reference.coarse, coarsen(current, reference.starts), len(reference.starts)
    stability, bits = psi.index(p, q), js.divergence(p, q)
    gap = ks.distance(reference.counts, current)
    readings = (
        Reading(
            "psi",
            max(0.0, stability - psi.noise(bins, **sizes)),
            limits.psi,
            psi.p_value(stability, bins, **sizes),
        ),
        Reading(
            "js",
            math.sqrt(max(0.0, bits - js.noise(bins, **sizes))),
            limits.js,
            js.p_value(bits, bins, **sizes),
        ),
        Reading("ks", gap, limits.ks, ks.p_value(gap, **sizes)),
    )
    is_drifted = any(reading.is_beyond for reading in readings)
    return Comparison(Verdict.DRIFTED if is_drifted else Verdict.STABLE, readings)
