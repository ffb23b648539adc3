"""The same rows and seed give the same model; what is announced holds."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import numpy as np
import pytest

from homeostat.common.pipeline import Pipeline
from homeostat.common.schemas.models import (
    Artifact,
    Golden,
    ModelVersion,
    Reference,
    VersionState,
)
from homeostat.trainer import reference, training
from homeostat.trainer.booster import Model
from homeostat.trainer.dataset import Examples, Refused
from homeostat.trainer.messages import Candidate, Judged, Tuned
from homeostat.trainer.training import Champion
from homeostat.trainer.tuning import Stopwatch

DAY = 86_400_000


def pipeline(**settings: Any) -> Pipeline:
    return Pipeline.model_validate(
        {
            "name": "toy",
            "owner": "tests",
            "source": {
                "id": "id",
                "time": "ts",
                "key": "id",
                "label": {"field": "y", "maturity": "1d", "absent": 0},
            },
            "unit": "id",
            "fields": {"id": "string", "a": "float"},
            "features": {"a": {"expression": "a"}},
            "training": {"budget": {"trials": 3, "seconds": 3600}, **settings},
        }
    )


def rows(
    count: int, *, seed: int = 1, days: tuple[int, int] = (0, 40), weight: float = 2.5
) -> Examples:
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(count, 3))
    values[generator.random(count) < 0.05, 2] = np.nan
    logit = weight * values[:, 0] + values[:, 0] * values[:, 1] - 2.0
    labels = (generator.random(count) < 1 / (1 + np.exp(-logit))).astype(float)
    times = np.sort(generator.integers(days[0] * DAY, days[1] * DAY, count))
    return Examples(("a", "b", "c"), "definition", times, values, labels, "digest")


def joined(*parts: Examples) -> Examples:
    return Examples(
        parts[0].features,
        parts[0].definition_hash,
        np.concatenate([part.times for part in parts]),
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.labels for part in parts]),
        "digest",
    )


def candidate_of(judged: Judged) -> Candidate:
    assert judged.candidate is not None
    return judged.candidate


def as_champion(judged: Judged, content: bytes | None) -> Champion:
    candidate = candidate_of(judged)
    assert content is not None
    version = ModelVersion(
        "toy",
        1,
        VersionState.APPROVED,
        0,
        0,
        "test",
        Artifact(candidate.sha256, candidate.size_bytes, ""),
        candidate.features,
        candidate.definition_hash,
        candidate.threshold,
        candidate.golden,
        candidate.reference,
    )
    return Champion(version, content)


def test_the_same_rows_and_seed_give_the_same_file() -> None:
    first, _ = training.train(rows(2000), pipeline(), champion=None, threads=1)
    second, _ = training.train(rows(2000), pipeline(), champion=None, threads=1)
    other, _ = training.train(rows(2000), pipeline(seed=8), champion=None, threads=1)

    assert candidate_of(first).sha256 == candidate_of(second).sha256
    assert candidate_of(first).training == candidate_of(second).training
    assert candidate_of(first).sha256 != candidate_of(other).sha256


def test_a_search_that_is_not_repeated_gives_the_same_file() -> None:
    searched: list[Tuned] = []
    first, _ = training.train(
        rows(2000), pipeline(), champion=None, threads=1, on_tuned=searched.append
    )
    kept = msgspec.convert(json.loads(msgspec.json.encode(searched[0])), Tuned)

    second, _ = training.train(rows(2000), pipeline(), champion=None, threads=1, tuned=kept)

    assert candidate_of(first).sha256 == candidate_of(second).sha256


def test_golden_vectors_reproduce_and_hold_nulls() -> None:
    judged, content = training.train(rows(2000), pipeline(), champion=None, threads=1)

    golden = candidate_of(judged).golden
    assert content is not None
    vectors = np.array([[np.nan if x is None else x for x in row] for row in golden.vectors], float)
    assert Model(content).score(vectors).tolist() == list(golden.scores)
    assert np.isnan(vectors).all(axis=1).any()


def test_a_challenger_beats_a_champion_whose_world_has_moved() -> None:
    old = rows(3000)
    champion = as_champion(*training.train(old, pipeline(), champion=None, threads=1))
    new = rows(3000, seed=2, days=(40, 60), weight=-2.5)
    spec = pipeline(history=["20d", "all"]).model_copy()
    lenient = spec.policy.model_copy(update={"rules": spec.policy.rules[:1]})

    judged, _ = training.train(
        joined(old, new),
        spec.model_copy(update={"policy": lenient}),
        champion=champion,
        threads=1,
    )

    assert judged.verdict.state is VersionState.APPROVED
    assert (judged.figures["improvement_lower"] or 0) > 0.5
    assert candidate_of(judged).training["history"] == f"{20 * DAY} ms"


def test_a_collapse_on_older_data_is_refused_by_the_default_policy() -> None:
    old = rows(3000)
    champion = as_champion(*training.train(old, pipeline(), champion=None, threads=1))
    new = rows(3000, seed=2, days=(40, 60), weight=-2.5)
    rows_seen, new_alone = joined(old, new), pipeline(history=["7d"])

    judged, content = training.train(rows_seen, new_alone, champion=champion, threads=1)

    assert content is None
    assert judged.verdict.reason.startswith("keeps older data")


def test_without_rows_that_the_champion_has_not_seen_nothing_is_judged() -> None:
    seen = rows(2000)
    champion = as_champion(*training.train(seen, pipeline(), champion=None, threads=1))

    with pytest.raises(Refused, match="that no model has seen"):
        training.train(seen, pipeline(), champion=champion, threads=1)


def test_a_challenger_learns_from_half_of_what_the_champion_has_not_seen() -> None:
    examples = rows(2000)
    unseen = int((examples.times > 34 * DAY).sum())

    parts = training.split(examples, holdout=0.2, seen_until=34 * DAY)

    assert len(parts.newest) == unseen - unseen // 2
    assert parts.past.times[-1] > 36 * DAY
    assert len(parts.past) + len(parts.newest) == len(examples)


def test_the_share_held_out_bounds_what_is_judged_on() -> None:
    examples = rows(2000)

    parts = training.split(examples, holdout=0.2, seen_until=10 * DAY)

    assert len(parts.newest) == 400


def test_a_search_is_charged_for_work_not_for_waiting() -> None:
    watch = Stopwatch.of(0.1, threads=1)

    time.sleep(0.2)
    waited = watch.is_over
    while not watch.is_over:
        sum(range(1000))

    assert not waited


def test_a_champion_of_other_definitions_is_not_compared() -> None:
    seen = rows(2000)
    champion = as_champion(*training.train(seen, pipeline(), champion=None, threads=1))
    version = msgspec.structs.replace(champion.version, definition_hash="before")

    judged, _ = training.train(
        seen, pipeline(), champion=Champion(version, champion.content), threads=1
    )

    assert judged.verdict.gates[0].bound == "waived: version 1 reads other feature definitions"


def test_a_histogram_counts_every_row_in_at_most_forty_bins() -> None:
    values = np.append(np.random.default_rng(1).lognormal(size=9_999), np.nan)

    found = reference.distribution(values)

    assert len(found.counts) == len(found.edges) + 1 <= reference.MAX_BINS
    assert (sum(found.counts), found.missing) == (9_999, 1)
    assert max(found.counts) < 2 * min(found.counts)


def test_a_histogram_of_nothing_says_so() -> None:
    found = reference.distribution(np.full(5, np.nan))

    assert (found.edges, found.counts, found.missing) == ((), (0,), 5)
    assert Reference({}, found, 0.0, {}).scores.missing == 5
    assert Golden((), ()).tolerance > 0
