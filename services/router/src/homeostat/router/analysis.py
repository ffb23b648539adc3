"""What is known about each arm of a rollout, and what follows from it.

Observations are counts that merge: from ledger rows (what was scored, how fast, with which error)
and from exposures (what the router assigned, and where the champion had to stand in). Both tell of
the same requests, so of two accounts of failures the worse one counts, and an arm that only one of
them knows is a gap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from homeostat.common.assignment import Variant
from homeostat.common.pipeline.spec import Guardrails
from homeostat.common.schemas.exposures import Exposure
from homeostat.common.schemas.rollouts import Phase
from homeostat.router.rollout import Judgement, Rollout, Stage, Verdict
from homeostat.router.sequential import log_evidence_above

ALPHA = 0.001  # chance of ever rolling back an arm that keeps within a limit, per limit
P99_SHARE = 0.01  # a p99 above a limit means: more than this share is slower
GAP_EXPECTED = 20  # rows expected of a silent arm before its silence counts: chance below 3e-9
GAP_BUCKETS = 20  # a hold is cut into so many buckets, in which arms are seen or not
SCORE_BINS = 20
SHARED_CAUSE_RATIO = (
    0.5  # a control that fails half as often as the challenger points to a shared cause
)
SHARED_CAUSE_SAMPLES = 20
_LATENCY_STEP = math.log(1.1)


class Row(msgspec.Struct, frozen=True):
    """What the analysis reads of a ledger row."""

    rollout: str
    variant: str
    path: str
    at: int
    score: float | None
    latency_us: int = 0
    error: str | None = None


class Arm(msgspec.Struct, frozen=True):
    """Counts of one arm since its stage began. ``latencies`` and ``scores`` are sparse histograms.

    ``scored`` and ``exposed`` count rows a bucket of pipeline time, so that an arm's silence shows.
    """

    samples: int = 0
    errors: int = 0
    slow: int = 0
    exposures: int = 0
    fallbacks: int = 0
    latencies: dict[int, int] = {}
    scores: dict[int, int] = {}
    scored: dict[int, int] = {}
    exposed: dict[int, int] = {}

    @property
    def failures(self) -> int:
        return max(self.errors, self.fallbacks)

    @property
    def requests(self) -> int:
        return max(self.samples, self.exposures)

    @property
    def error_rate(self) -> float:
        return self.failures / self.requests if self.requests else 0.0

    @property
    def p99_ms(self) -> float | None:
        """Upper edge of the histogram's bin (10 % wide) that holds the 99th percentile."""
        total = sum(self.latencies.values())
        if not total:
            return None
        remaining = math.ceil(total * (1 - P99_SHARE))
        for bin_ in sorted(self.latencies):
            remaining -= self.latencies[bin_]
            if remaining <= 0:
                break
        return math.exp((bin_ + 1) * _LATENCY_STEP) / 1000

    def merged(self, other: Arm) -> Arm:
        return Arm(
            self.samples + other.samples,
            self.errors + other.errors,
            self.slow + other.slow,
            self.exposures + other.exposures,
            self.fallbacks + other.fallbacks,
            _added(self.latencies, other.latencies),
            _added(self.scores, other.scores),
            _added(self.scored, other.scored),
            _added(self.exposed, other.exposed),
        )

    def figures(self) -> dict[str, Any]:
        """The arm as evidence in a record."""
        return {
            "samples": self.samples,
            "errors": self.failures,
            "error_rate": self.error_rate,
            "slow": self.slow,
            "p99_ms": self.p99_ms,
            "exposures": self.exposures,
            "scores": {str(bin_): self.scores[bin_] for bin_ in sorted(self.scores)},
        }


class Observation(msgspec.Struct, frozen=True):
    """Challenger and concurrent control, side by side."""

    challenger: Arm = Arm()
    control: Arm = Arm()

    def merged(self, other: Observation) -> Observation:
        return Observation(
            self.challenger.merged(other.challenger), self.control.merged(other.control)
        )

    def figures(self) -> dict[str, Any]:
        return {"challenger": self.challenger.figures(), "control": self.control.figures()}


@dataclass(frozen=True)
class Lens:
    """Which rows belong to the stage under analysis, and how they are counted."""

    rollout: str
    path: str
    since: int
    slow_us: int
    bucket_ms: int

    @classmethod
    def of(cls, rollout: Rollout, guardrails: Guardrails, path: str) -> Lens:
        slow = guardrails.p99_latency.maximum.total_seconds()
        bucket = max(1000, rollout.current.hold_ms // GAP_BUCKETS)
        return cls(rollout.id, path, rollout.entered_at, round(slow * 1_000_000), bucket)

    def observe(self, rows: Iterable[Row], exposures: Iterable[Exposure] = ()) -> Observation:
        """Count the rows and exposures of the stage; all others are skipped."""
        counts = {True: _Counts(), False: _Counts()}
        for row in rows:
            if row.rollout == self.rollout and row.path == self.path and row.at >= self.since:
                counts[row.variant != Variant.CHAMPION].add_row(row, self)
        for exposure in exposures:
            if exposure.rollout == self.rollout and exposure.at >= self.since:
                counts[exposure.assigned is not Variant.CHAMPION].add_exposure(exposure, self)
        return Observation(challenger=counts[True].arm(), control=counts[False].arm())


class _Counts:
    """An arm while a batch is being counted."""

    def __init__(self) -> None:
        self.samples = self.errors = self.slow = self.exposures = self.fallbacks = 0
        self.latencies: dict[int, int] = {}
        self.scores: dict[int, int] = {}
        self.scored: dict[int, int] = {}
        self.exposed: dict[int, int] = {}

    def add_row(self, row: Row, lens: Lens) -> None:
        self.samples += 1
        self.slow += row.latency_us > lens.slow_us
        _count(self.latencies, int(math.log(max(1, row.latency_us)) / _LATENCY_STEP))
        _count(self.scored, row.at // lens.bucket_ms)
        if row.error is not None or row.score is None or not math.isfinite(row.score):
            self.errors += 1
        else:
            _count(self.scores, min(SCORE_BINS - 1, max(0, int(row.score * SCORE_BINS))))

    def add_exposure(self, exposure: Exposure, lens: Lens) -> None:
        self.exposures += 1
        self.fallbacks += exposure.served is not exposure.assigned
        _count(self.exposed, exposure.at // lens.bucket_ms)

    def arm(self) -> Arm:
        return Arm(
            self.samples,
            self.errors,
            self.slow,
            self.exposures,
            self.fallbacks,
            self.latencies,
            self.scores,
            self.scored,
            self.exposed,
        )


def judge(
    rollout: Rollout,
    observation: Observation,
    guardrails: Guardrails,
    bucket_ms: int,
    now: int,
    *,
    grace_ms: int = 0,
) -> Judgement:
    """Judge the stage of a rollout in flight by everything observed since it began.

    Harm comes first, then what is missing, then what is not enough yet. Absence of data never
    promotes. Telemetry that is younger than ``grace_ms`` may still be on its way: it is not missed.
    """
    stage = rollout.current
    challenger, control = observation.challenger, observation.control
    evidence = {"stage": msgspec.to_builtins(stage), **observation.figures()}
    if breach := _breach(challenger, guardrails):
        if _shares_cause(challenger, control, guardrails):
            return Judgement(Verdict.INSUFFICIENT, f"{breach}, the control too: hold", evidence)
        return Judgement(Verdict.ROLL_BACK, breach, evidence)
    ratio = _ratio(rollout)
    if gap := _gap(observation, ratio, (now - grace_ms) // bucket_ms):
        return Judgement(Verdict.INSUFFICIENT, gap, evidence, is_gap=True)
    if breach := _breach(control, guardrails):
        return Judgement(Verdict.INSUFFICIENT, f"the champion fails: {breach}", evidence)
    if missing := _missing_samples(observation, stage, ratio):
        return Judgement(Verdict.INSUFFICIENT, missing, evidence)
    if challenger.error_rate > guardrails.error_rate.maximum:
        return Judgement(Verdict.CONTINUE, "the error rate is above its limit so far", evidence)
    if challenger.slow > challenger.samples * P99_SHARE:
        return Judgement(Verdict.CONTINUE, "the p99 latency is above its limit so far", evidence)
    if rollout.is_held(now):
        return Judgement(Verdict.CONTINUE, "within all limits, the hold is not over", evidence)
    return Judgement(
        Verdict.PROMOTE, f"within all limits over {challenger.samples} scores", evidence
    )


def _breach(arm: Arm, guardrails: Guardrails) -> str | None:
    """The hard limit that an arm exceeds beyond doubt."""
    certain = -math.log(ALPHA)
    errors = guardrails.error_rate
    if arm.requests >= errors.min_samples and (
        log_evidence_above(errors.maximum, hits=arm.failures, samples=arm.requests) > certain
    ):
        return f"error rate {arm.error_rate:.2%} is above {errors.maximum:.2%}"
    latency = guardrails.p99_latency
    if arm.samples >= latency.min_samples and (
        log_evidence_above(P99_SHARE, hits=arm.slow, samples=arm.samples) > certain
    ):
        limit_ms = latency.maximum.total_seconds() * 1000
        return f"p99 latency {arm.p99_ms:.0f} ms is above {limit_ms:.0f} ms"
    return None


def _shares_cause(challenger: Arm, control: Arm, guardrails: Guardrails) -> bool:
    """Whether the control fails like the challenger, so that the version is not to blame."""
    if _breach(control, guardrails):
        return True
    if control.samples < SHARED_CAUSE_SAMPLES:
        return False
    fails_alike = 0 < challenger.error_rate * SHARED_CAUSE_RATIO <= control.error_rate
    slow_share = challenger.slow / max(1, challenger.samples)
    slow_alike = 0 < slow_share * SHARED_CAUSE_RATIO <= control.slow / control.samples
    return fails_alike or slow_alike


def _ratio(rollout: Rollout) -> float:
    """Challenger scores expected for each one of the control; infinite without a control."""
    if rollout.phase is Phase.SHADOW:
        return 1.0
    return math.inf if rollout.share >= 1.0 else rollout.share / (1.0 - rollout.share)


def _gap(observation: Observation, ratio: float, current: int) -> str | None:
    """The arm that has fallen silent while the other one, or its own exposures, go on."""
    challenger, control = observation.challenger, observation.control
    arms: Sequence[tuple[str, Arm, Arm, float]] = [("challenger", challenger, control, ratio)]
    if math.isfinite(ratio):
        arms = [*arms, ("champion", control, challenger, 1.0 / ratio)]
    for name, arm, other, expected_each in arms:
        last = max(arm.scored, default=-1)
        expected = _since(other.scored, last, current) * (
            expected_each if math.isfinite(expected_each) else 0.0
        )
        if max(expected, _since(arm.exposed, last, current)) >= GAP_EXPECTED:
            return f"no ledger rows of the {name}, although there is traffic"
    return None


def _since(counts: dict[int, int], last: int, current: int) -> int:
    """Rows in the complete buckets after ``last``; the current one may still be on its way."""
    return sum(rows for bucket, rows in counts.items() if last < bucket < current)


def _missing_samples(observation: Observation, stage: Stage, ratio: float) -> str | None:
    """How many scores an arm still lacks. The control needs its proportional part."""
    needed = stage.min_samples
    seen = observation.challenger.samples
    if seen < needed:
        return f"the challenger has {seen} of {needed} scores"
    needed_control = math.ceil(needed * min(1.0, 1.0 / ratio)) if math.isfinite(ratio) else 0
    seen_control = observation.control.samples
    if seen_control < needed_control:
        return f"the champion has {seen_control} of {needed_control} scores"
    return None


def _count(counts: dict[int, int], key: int) -> None:
    counts[key] = counts.get(key, 0) + 1


def _added(left: dict[int, int], right: dict[int, int]) -> dict[int, int]:
    if not right:
        return left
    return {key: left.get(key, 0) + right.get(key, 0) for key in left.keys() | right.keys()}
