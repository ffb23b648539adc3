"""The data plane: assign, ask, fall back, guard, expose. It needs inference and the last snapshot,
no more.
 A caller never pays for a challenger: when it errs, is late or talks nonsense, the champion answers
within the same deadline, and the guard counts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from homeostat.common.assignment import Variant
from homeostat.common.errors import DeadlineExceeded, HomeostatError, TransientError
from homeostat.common.schemas.exposures import Exposure
from homeostat.common.schemas.models import ModelVersion
from homeostat.common.schemas.rollouts import RolloutSnapshot, Trip
from homeostat.router import metrics
from homeostat.router.budget import RetryBudget
from homeostat.router.guard import Guard, Outcome
from homeostat.router.publisher import Publisher
from homeostat.router.requests import Request
from homeostat.router.trips import Trips
from homeostat.router.upstream import Inference, Nonsense, Refused, Reply, Target

logger = logging.getLogger(__name__)

RETRY_RATIO = 0.2
MIN_RETRY_SECONDS = 0.01
MAX_GUARDS = 64
TRIPPED = "tripped"


@dataclass(frozen=True, slots=True)
class Limits:
    request_seconds: float
    challenger_seconds: float
    max_shadow_in_flight: int
    retry_capacity: int


@dataclass(frozen=True, slots=True)
class Answer:
    request: Request
    reply: Reply
    version: int
    variant: Variant


class NoChampion(TransientError):
    code = "NO_CHAMPION"


class Routing:
    def __init__(
        self,
        *,
        rollouts: Mapping[str, RolloutSnapshot],
        versions: Mapping[str, ModelVersion],
        inference: Inference,
        publisher: Publisher,
        trips: Trips,
        limits: Limits,
        now_millis: Callable[[], int],
        router: str,
        first_champion_hint: str,
    ) -> None:
        self._rollouts = rollouts
        self._versions = versions
        self._inference = inference
        self._publisher = publisher
        self._trips = trips
        self._limits = limits
        self._now_millis = now_millis
        self._router = router
        self._hint = first_champion_hint
        self._budget = RetryBudget(ratio=RETRY_RATIO, capacity=limits.retry_capacity)
        self._guards: dict[str, Guard] = {}
        self._shadows: set[asyncio.Task[None]] = set()

    def snapshot(self, pipeline: str) -> RolloutSnapshot:
        """The rollout as this router knows it.

        Raises:
            NoChampion: nothing has been crowned yet.
        """
        snapshot = self._rollouts.get(pipeline)
        if snapshot is None or snapshot.champion is None:
            raise NoChampion(
                f"pipeline {pipeline!r} has no champion yet",
                fix=self._hint.format(pipeline=pipeline),
                retry_after_seconds=5,
            )
        return snapshot

    async def predict(self, pipeline: str, request: Request, *, trace: str) -> Answer:
        """Answer one request with the variant of its unit, or with the champion in its place.

        Raises:
            NoChampion: there is nothing to ask.
            Refused, InvalidInput: the request is wrong.
            DeadlineExceeded, TransientError: the champion could not answer either.
        """
        snapshot = self.snapshot(pipeline)
        started = time.monotonic()
        deadline = started + self._limits.request_seconds
        self._budget.earn()
        assigned = snapshot.assign(request.unit)
        call = _Call(pipeline, snapshot, request, trace, deadline)
        answered, reason, reply = Variant.CHAMPION, Outcome.OK.value, None
        if assigned is Variant.CHALLENGER:
            if self._trips.forbids(snapshot):
                reason = TRIPPED
            else:
                reply, outcome = await self._ask_challenger(call)
                reason = outcome.value
        if reply is not None:
            answered = Variant.CHALLENGER
            self._watch(snapshot, pipeline, Outcome.OK)
        else:
            reply = await self._ask_champion(call, is_second=reason not in (Outcome.OK, TRIPPED))
            if assigned is Variant.CHALLENGER:
                metrics.of(pipeline).fallbacks(reason).inc()
                if reason != TRIPPED:
                    self._watch(snapshot, pipeline, Outcome(reason))
        metrics.of(pipeline).served(answered.value).inc()
        version = snapshot.version(answered) or 0
        self._publisher.expose(
            pipeline,
            Exposure(
                prediction_id=request.prediction_id,
                unit=request.unit,
                rollout=snapshot.rollout,
                generation=snapshot.generation,
                assigned=assigned,
                served=answered,
                version=version,
                at=request.available_at or self._now_millis(),
                propensity=snapshot.split.propensity(assigned),
                reason=reason,
                latency_us=round((time.monotonic() - started) * 1_000_000),
            ),
            is_replayed=request.available_at is not None,
        )
        if snapshot.is_shadowing and not self._trips.forbids(snapshot):
            self._shadow(call)
        return Answer(request, reply, version, answered)

    async def drain(self) -> None:
        """Wait for the shadow rows that are still on their way."""
        if self._shadows:
            await asyncio.gather(*self._shadows, return_exceptions=True)

    async def _ask_challenger(self, call: _Call) -> tuple[Reply | None, Outcome]:
        """The challenger's reply, or how it failed. A refusal is repeated with the champion: the
        challenger's word is not enough to turn a caller away."""
        limit = min(call.deadline, time.monotonic() + self._limits.challenger_seconds)
        try:
            return await self._ask(call, Variant.CHALLENGER, limit), Outcome.OK
        except DeadlineExceeded:
            return None, Outcome.TIMEOUT
        except Nonsense:
            return None, Outcome.NON_FINITE
        except HomeostatError:
            return None, Outcome.ERROR

    async def _ask_champion(self, call: _Call, *, is_second: bool) -> Reply:
        if is_second and not self._budget.spend():
            metrics.RETRY_BUDGET_SPENT.inc()
            raise TransientError("the challenger failed and the retry budget is spent")
        try:
            return await self._ask(call, Variant.CHAMPION, call.deadline)
        except Nonsense:
            raise
        except TransientError:
            left = call.deadline - time.monotonic()
            if is_second or left < MIN_RETRY_SECONDS or not self._budget.spend():
                raise
        metrics.of(call.pipeline).retries.inc()
        return await self._ask(call, Variant.CHAMPION, call.deadline)

    async def _ask(self, call: _Call, variant: Variant, deadline: float) -> Reply:
        """Ask the version that plays ``variant``; a shadow is asked like a challenger."""
        snapshot, request = call.snapshot, call.request
        version = snapshot.version(variant) or 0
        known = self._versions.get(f"{call.pipeline}/{version}")
        propensity = 1.0 if variant is Variant.SHADOW else snapshot.split.propensity(variant)
        row = request.row(
            known.features if known else None, propensity=propensity, trace=call.trace
        )
        target = Target(call.pipeline, version, snapshot.rollout, variant)
        return await self._inference.score(target, row, deadline=deadline)

    def _watch(self, snapshot: RolloutSnapshot, pipeline: str, outcome: Outcome) -> None:
        """Tell the guard; when it trips, the challenger's weight is zero from here on."""
        key = f"{snapshot.rollout}/{snapshot.challenger}"
        guard = self._guards.pop(key, Guard()).after(outcome)
        self._guards[key] = guard
        if len(self._guards) > MAX_GUARDS:
            del self._guards[next(iter(self._guards))]
        if guard.trip is None or snapshot.challenger is None:
            return
        trip = Trip(
            pipeline=pipeline,
            rollout=snapshot.rollout,
            version=snapshot.challenger,
            reason=guard.trip,
            at=self._now_millis(),
            router=self._router,
        )
        if self._trips.add(trip):
            metrics.of(pipeline).trips.inc()
            self._publisher.report(trip)
            logger.warning("guard tripped", extra={"rollout": trip.rollout, "reason": trip.reason})

    def _shadow(self, call: _Call) -> None:
        """Score beside the answer. Beyond the budget it is dropped: nobody waits for a shadow."""
        if len(self._shadows) >= self._limits.max_shadow_in_flight:
            metrics.of(call.pipeline).shadows_dropped.inc()
            return
        task = asyncio.create_task(self._ask_shadow(call), name="shadow")
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _ask_shadow(self, call: _Call) -> None:
        deadline = time.monotonic() + self._limits.request_seconds
        try:
            await self._ask(call, Variant.SHADOW, deadline)
        except HomeostatError as error:
            # The ledger row, or its absence, tells the judge; the caller has long been answered.
            logger.debug("shadow failed", extra={"error": str(error)})


@dataclass(frozen=True, slots=True)
class _Call:
    pipeline: str
    snapshot: RolloutSnapshot
    request: Request
    trace: str
    deadline: float


__all__ = ["Answer", "Limits", "NoChampion", "Refused", "Routing"]
