"""The judge's step under whatever order of events Hypothesis can think of."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from homeostat.common.assignment import Variant
from homeostat.common.errors import Conflict
from homeostat.common.pipeline import Pipeline
from homeostat.common.schemas.alerts import Alert, AlertKind, Cause
from homeostat.common.schemas.models import (
    Artifact,
    Distribution,
    Golden,
    ModelVersion,
    Reference,
    VersionState,
)
from homeostat.common.schemas.rollouts import Phase, RolloutSnapshot, Trip
from homeostat.router.analysis import Row
from homeostat.router.judging import (
    Action,
    Command,
    Decision,
    Input,
    State,
    Telemetry,
    Tick,
    current_judgement,
    step,
)
from homeostat.router.rollout import Verdict

HOLD_MS = 600_000
UNITS = [f"customer-{number}" for number in range(60)]


def pipeline() -> Pipeline:
    return Pipeline.model_validate(
        {
            "apiVersion": "homeostat/v1",
            "name": "shop",
            "owner": "tests",
            "source": {
                "id": "id",
                "time": "at",
                "key": "customer",
                "label": {"field": "label", "maturity": "1d"},
            },
            "unit": "customer",
            "fields": {"id": "string", "customer": "string"},
            "features": {
                "orders": {"entity": "customer", "aggregate": "count()", "window": "sliding 1h"}
            },
            "rollout": {
                "shadow": {"hold": "10m", "min_samples": 50},
                "experiment": {"hold": "10m", "min_samples": 50, "share": 0.1},
                "steps": [5, 25, 50, 100],
                "hold": "10m",
                "min_samples": 50,
            },
        }
    )


def version(number: int, *, digest: str | None = None, available_at: int = 0) -> ModelVersion:
    histogram = Distribution(edges=(0.5,), counts=(1, 1))
    return ModelVersion(
        pipeline="shop",
        version=number,
        state=VersionState.APPROVED,
        created_at=0,
        available_at=available_at,
        cause="test",
        artifact=Artifact(sha256=digest or f"digest-{number}", size_bytes=1, uri="redis:x"),
        features=("orders",),
        definition_hash="d",
        threshold=0.5,
        golden=Golden(vectors=(), scores=()),
        reference=Reference(features={}, scores=histogram, positive_share=0.1, metrics={}),
    )


def telemetry(
    state: State, now: int, *, challenger: int = 0, failing: int = 0, champion: int = 0
) -> Telemetry:
    """Ledger rows of both arms at ``now``."""
    rollout = state.rollout
    variant = "shadow" if rollout.phase is Phase.SHADOW else "challenger"
    good = [Row(rollout.id, variant, "request", now, 0.5, 900)] * challenger
    bad = [Row(rollout.id, variant, "request", now, None, 900, "boom")] * failing
    control = [Row(rollout.id, "champion", "request", now, 0.4, 900)] * champion
    return Telemetry(rows=good + bad + control)


def skew(kind: AlertKind = AlertKind.SKEW) -> Alert:
    return Alert(
        id="a",
        pipeline="shop",
        kind=kind,
        cause=Cause.DATA_FAULT,
        at=0,
        window_start=0,
        window_end=0,
        version=1,
        findings=(),
        retrain=False,
        message="customer 'c1' was served 2.0, its log folds to 1.0",
    )


class Rollouts(RuleBasedStateMachine):
    """Approvals, traffic, failures, silence, trips and people, in any order."""

    @initialize()
    def begin(self) -> None:
        self.pipeline = pipeline()
        self.now = 1_000_000
        self.versions = 0
        self.state, _ = step(State.empty("shop"), self._version(), self.now, self.pipeline)

    def _version(self) -> ModelVersion:
        self.versions += 1
        return version(self.versions)

    def _step(self, given: Input) -> list[Decision]:
        """Take the step and check what holds of every step."""
        before = self.state
        self.state, decisions = step(before, given, self.now, self.pipeline)
        self._check_gates(before, given, decisions)
        self._check_units(before.rollout.snapshot(1), self.state.rollout.snapshot(1))
        return decisions

    def _check_gates(self, before: State, given: Input, decisions: list[Decision]) -> None:
        was, now_is = before.rollout, self.state.rollout
        if now_is.id == was.id:
            assert now_is.stage - was.stage in (0, 1)
        grew = now_is.id == was.id and now_is.share > was.share
        if before.skew is not None and now_is.id == was.id:
            assert now_is.stage == was.stage
            assert now_is.champion == was.champion
        if grew and not isinstance(given, Command):
            (decision,) = [item for item in decisions if item.action == "advanced"]
            assert decision.evidence["verdict"] is Verdict.PROMOTE
            assert self.now - was.entered_at >= HOLD_MS
            assert decision.evidence["challenger"]["samples"] >= 50
        if isinstance(given, Tick | Telemetry | Trip) and now_is.champion != was.champion:
            assert was.stage + 1 == len(was.stages)
            assert [item.action for item in decisions] == ["promoted"]
        if now_is.generation != was.generation:
            assert decisions, "each change is a decision with its evidence"

    def _check_units(self, before: RolloutSnapshot, after: RolloutSnapshot) -> None:
        """While ramping, nobody who has met the challenger goes back to the champion."""
        if before.rollout != after.rollout or not before.share <= after.share:
            return
        for unit in UNITS:
            if before.assign(unit) is Variant.CHALLENGER:
                assert after.assign(unit) is Variant.CHALLENGER

    @rule(minutes=st.integers(1, 90))
    def time_passes(self, minutes: int) -> None:
        self.now += minutes * 60_000
        self._step(Tick())

    @rule()
    def version_is_approved(self) -> None:
        self._step(self._version())

    @rule()
    def challenger_is_approved_again_under_a_new_number(self) -> None:
        challenger = self.state.rollout.challenger
        self.versions += 1
        digest = challenger.digest if challenger else None
        self._step(version(self.versions, digest=digest))

    @rule(rows=st.integers(1, 300))
    def both_arms_do_well(self, rows: int) -> None:
        self._step(telemetry(self.state, self.now, challenger=rows, champion=rows))

    @rule(rows=st.integers(1, 300))
    def challenger_fails(self, rows: int) -> None:
        was_live = self.state.rollout.is_in_flight
        fresh = self.state.observation.challenger.samples == 0
        self._step(telemetry(self.state, self.now, failing=rows, champion=rows))
        if was_live and fresh and rows >= 100:
            assert self.state.rollout.phase is not Phase.CHAMPION

    @rule(rows=st.integers(1, 300))
    def challenger_is_silent(self, rows: int) -> None:
        before = self.state.rollout
        self._step(telemetry(self.state, self.now, champion=rows))
        if self.state.observation.challenger.samples == 0:
            assert self.state.rollout.stage <= before.stage or self.state.rollout.id != before.id

    @precondition(lambda self: self.state.rollout.is_in_flight)
    @rule()
    def guard_trips(self) -> None:
        rollout = self.state.rollout
        assert rollout.challenger is not None
        trip = Trip("shop", rollout.id, rollout.challenger.version, "late", self.now, "router-a")
        decisions = self._step(trip)
        assert [item.action for item in decisions][:1] == ["rolled_back"]
        assert rollout.challenger.digest in self.state.rollout.rejected

    @rule()
    def skew_is_found(self) -> None:
        self._step(skew())
        assert self.state.skew == skew().message

    @precondition(lambda self: self.state.skew is not None)
    @rule()
    def skew_is_cleared(self) -> None:
        self._step(Command(Action.CLEAR, "ann", "a bad disk"))
        assert self.state.skew is None

    @rule(action=st.sampled_from([Action.PAUSE, Action.RESUME, Action.ABORT, Action.PROMOTE]))
    def person_commands(self, action: Action) -> None:
        before = self.state
        command = Command(action, "ann", "because", before.rollout.generation)
        try:
            self._step(command)
        except Conflict:
            assert self.state is before

    @rule(action=st.sampled_from([Action.ABORT, Action.PROMOTE]))
    def person_acts_on_an_old_state(self, action: Action) -> None:
        before = self.state
        with pytest.raises(Conflict, match="generation"):
            self._step(Command(action, "ann", "late", before.rollout.generation - 1))
        assert self.state is before

    @invariant()
    def there_is_a_champion_and_at_most_one_challenger(self) -> None:
        rollout = self.state.rollout
        assert rollout.champion is not None
        assert rollout.is_in_flight == (rollout.share > 0 or rollout.phase is Phase.SHADOW)
        if rollout.is_in_flight:
            assert rollout.challenger is not None
            assert rollout.challenger != rollout.champion

    @invariant()
    def nothing_that_was_rolled_back_is_in_flight(self) -> None:
        rollout = self.state.rollout
        if rollout.is_in_flight and rollout.challenger:
            assert rollout.challenger.digest not in rollout.rejected


TestRollouts = Rollouts.TestCase
TestRollouts.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.fixture
def with_champion() -> State:
    state, _ = step(State.empty("shop"), version(1), 0, pipeline())
    return state


def act(state: State, *inputs: Input, now: int = 0) -> tuple[State, list[str]]:
    actions: list[str] = []
    for given in inputs:
        state, decisions = step(state, given, now, pipeline())
        actions += [decision.action for decision in decisions]
    return state, actions


def test_first_version_is_crowned_at_once_and_the_second_starts_in_the_shadow(
    with_champion: State,
) -> None:
    state, actions = act(with_champion, version(2))

    assert with_champion.rollout.phase is Phase.CHAMPION
    assert (state.rollout.phase, actions) == (Phase.SHADOW, ["started"])


def test_version_waits_for_its_time_in_the_pipelines_clock(with_champion: State) -> None:
    later = version(2, available_at=5_000)

    early, none = act(with_champion, later, now=4_999)
    due, actions = act(early, later, now=5_000)

    assert (early, none) == (with_champion, [])
    assert (due.rollout.is_in_flight, actions) == (True, ["started"])


def test_same_version_is_dealt_with_once(with_champion: State) -> None:
    state, _ = act(with_champion, version(2))

    again, actions = act(state, version(2))

    assert (again, actions) == (state, [])


def test_version_that_comes_during_a_rollout_starts_when_that_one_has_ended(
    with_champion: State,
) -> None:
    state, queued = act(with_champion, version(2), version(3))
    aborted, actions = act(state, Command(Action.ABORT, "ann", "bad luck"))

    assert queued == ["started", "queued"]
    assert actions == ["aborted", "started"]
    assert aborted.rollout.challenger is not None
    assert aborted.rollout.challenger.version == 3


def test_digest_that_was_rolled_back_is_refused_under_a_new_number(with_champion: State) -> None:
    state, _ = act(with_champion, version(2), Command(Action.ABORT, "ann", "bad luck"))

    after, actions = act(state, version(3, digest="digest-2"))

    assert actions == ["refused"]
    assert not after.rollout.is_in_flight


def test_rejected_version_starts_again_only_by_force_and_with_a_reason(
    with_champion: State,
) -> None:
    state, _ = act(with_champion, version(2), Command(Action.ABORT, "ann", "bad luck"))

    with pytest.raises(Conflict, match="rolled back before"):
        act(state, Command(Action.START, "ann", "", version=version(2)))
    forced = Command(
        Action.START, "ann", "the input was at fault", version=version(2), is_forced=True
    )
    after, actions = act(state, forced)

    assert actions == ["started"]
    assert after.rollout.is_in_flight


def test_person_may_promote_one_stage_or_all_the_way(with_champion: State) -> None:
    state, _ = act(with_champion, version(2))

    one, _ = act(state, Command(Action.PROMOTE, "ann", "seen enough"))
    whole, _ = act(state, Command(Action.PROMOTE, "ann", "urgent", to_champion=True))

    assert one.rollout.phase is Phase.EXPERIMENT
    assert (whole.rollout.phase, whole.rollout.champion) == (
        Phase.CHAMPION,
        state.rollout.challenger,
    )


def test_whole_way_by_evidence_alone(with_champion: State) -> None:
    state, actions = act(with_champion, version(2))
    now = 0

    for _ in range(5):
        now += HOLD_MS
        good = telemetry(state, now, challenger=100, champion=100)
        state, taken = act(state, good, now=now)
        actions += taken

    # The experiment's 10 % makes the canary's 5 % superfluous.
    assert actions == ["started", "advanced", "advanced", "advanced", "advanced", "promoted"]
    assert state.rollout.champion is not None
    assert state.rollout.champion.version == 2


def test_a_skew_holds_what_the_evidence_would_promote_until_it_is_cleared(
    with_champion: State,
) -> None:
    state, _ = act(with_champion, version(2))
    good = telemetry(state, HOLD_MS, challenger=100, champion=100)

    held, found = act(state, skew(), skew(), good, Tick(), now=HOLD_MS)
    judgement = current_judgement(held, HOLD_MS, pipeline())
    cleared, moves = act(held, Command(Action.CLEAR, "ann", "a bad disk"), now=HOLD_MS)

    assert (found, held.rollout) == (["skewed"], state.rollout)
    assert judgement is not None
    assert (judgement.verdict, judgement.reason) == (
        Verdict.CONTINUE,
        "held by a skew: customer 'c1' was served 2.0, its log folds to 1.0",
    )
    assert moves == ["cleared", "advanced"]
    assert cleared.rollout.phase is Phase.EXPERIMENT


def test_over_a_skew_a_person_promotes_only_by_force_and_with_a_reason(
    with_champion: State,
) -> None:
    state, _ = act(with_champion, version(2), skew())

    for command in (
        Command(Action.PROMOTE, "ann", "seen enough"),
        Command(Action.PROMOTE, "ann", "", is_forced=True),
    ):
        with pytest.raises(Conflict, match="held by a skew: customer 'c1'"):
            act(state, command)
    forced, _ = act(state, Command(Action.PROMOTE, "ann", "understood", is_forced=True))

    assert forced.rollout.phase is Phase.EXPERIMENT


def test_a_skew_holds_no_roll_back(with_champion: State) -> None:
    state, _ = act(with_champion, version(2), skew())

    failing = telemetry(state, 1, failing=200, champion=200)

    assert act(state, failing, now=1)[1] == ["rolled_back"]


def test_other_alerts_hold_nothing(with_champion: State) -> None:
    assert act(with_champion, skew(AlertKind.QUALITY)) == (with_champion, [])


def test_without_traffic_a_rollout_stays_for_as_long_as_it_takes(with_champion: State) -> None:
    state, _ = act(with_champion, version(2))

    after, actions = act(state, Tick(), now=1_000 * HOLD_MS)

    assert (after, actions) == (state, [])
    judgement = current_judgement(after, 1_000 * HOLD_MS, pipeline())
    assert judgement is not None
    assert judgement.verdict is Verdict.INSUFFICIENT
    assert judgement.reason == "the challenger has 0 of 50 scores"


def test_every_decision_carries_the_figures_it_stands_on(with_champion: State) -> None:
    state, _ = act(with_champion, version(2))
    bad = telemetry(state, 1, challenger=100, failing=100, champion=200)

    _, (decision,) = step(state, bad, 1, pipeline())

    assert decision.action == "rolled_back"
    assert decision.reason == "error rate 50.00% is above 1.00%"
    evidence: dict[str, Any] = decision.evidence
    assert (evidence["challenger"]["errors"], evidence["challenger"]["samples"]) == (100, 200)
    assert (evidence["control"]["errors"], evidence["control"]["samples"]) == (0, 200)
    assert evidence["to"]["phase"] is Phase.ROLLED_BACK
