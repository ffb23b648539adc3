"""The detectors against scipy, and their verdicts under the null and under planted shifts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon

from homeostat.drift.detectors import Histogram, Limits, Verdict, compare, js, ks, psi
from homeostat.drift.detectors.histograms import histogram

LIMITS = Limits(psi=0.25, js=0.15, ks=0.15)  # the defaults of a pipeline file
REFERENCE = 20_000


def edges_of(values: np.ndarray) -> np.ndarray:
    return np.unique(np.quantile(values, np.linspace(0, 1, 51)[1:-1]))


@pytest.mark.parametrize("seed", range(5))
def test_binned_ks_is_scipys_on_binned_values_and_bounds_it_on_raw_ones(seed: int) -> None:
    random = np.random.default_rng(seed)
    reference, current = random.normal(size=5_000), random.normal(0.2, 1.3, 700)
    edges = edges_of(reference)
    p, q = histogram(reference, edges), histogram(current, edges)

    binned = ks.distance(p, q)

    raw = stats.ks_2samp(reference, current).statistic
    moved = [np.searchsorted(edges, each, side="right") for each in (reference, current)]
    assert binned == pytest.approx(stats.ks_2samp(*moved).statistic, abs=1e-12)
    assert raw - max(p.max() / p.sum(), q.max() / q.sum()) <= binned <= raw


def test_the_ks_p_value_is_scipys_asymptotic_one() -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(size=3_000), random.normal(0.08, 1, 2_000)
    expected = stats.ks_2samp(a, b, method="asymp")

    ours = ks.p_value(expected.statistic, reference_size=3_000, current_size=2_000)

    # scipy evaluates the exact Smirnov tail at a rounded effective size, we its limit.
    assert ours == pytest.approx(expected.pvalue, rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_js_is_scipys_distance_in_bits(seed: int) -> None:
    random = np.random.default_rng(seed)
    p, q = random.integers(0, 50, 12) + np.eye(12, dtype=int)[0], random.integers(0, 50, 12)

    assert js.distance(p, q) == pytest.approx(jensenshannon(p, q, 2), abs=1e-12)


def test_psi_is_the_sum_of_both_divergences() -> None:
    random = np.random.default_rng(2)
    p, q = random.integers(1, 50, 12), random.integers(1, 50, 12)

    both = stats.entropy(p, q) + stats.entropy(q, p)

    assert psi.index(p, q, pseudo_count=0) == pytest.approx(both, abs=1e-12)


def test_noise_and_p_value_of_psi_hold_in_simulation() -> None:
    random = np.random.default_rng(3)
    shares = np.full(10, 0.1)
    values = [
        psi.index(random.multinomial(20_000, shares), random.multinomial(800, shares))
        for _ in range(2_000)
    ]

    mean = psi.noise(10, reference_size=20_000, current_size=800)
    beyond = [psi.p_value(each, 10, reference_size=20_000, current_size=800) for each in values]
    assert np.mean(values) == pytest.approx(mean, rel=0.05)
    assert np.mean(np.array(beyond) < 0.05) == pytest.approx(0.05, abs=0.015)


def draw(feature: int, n: int, random: np.random.Generator) -> np.ndarray:
    """Twenty kinds of feature: normal, heavy-tailed, discrete, mostly zero, bounded."""
    kind, size = feature % 5, 1 + feature // 5
    if kind == 0:
        return random.normal(0, size, n)
    if kind == 1:
        return random.pareto(0.7 + 0.3 * size, n)
    if kind == 2:
        return random.poisson(size, n).astype(float)
    if kind == 3:
        return np.where(random.random(n) < 0.95, 0.0, random.lognormal(size, 2, n))
    return random.beta(size, 3, n)


@pytest.mark.parametrize("n", [50, 500, 50_000])
def test_stationary_features_never_alarm_whatever_the_window_size(n: int) -> None:
    random = np.random.default_rng(n)
    windows = 200 if n < 10_000 else 10
    drifted = 0
    for feature in range(20):
        reference = draw(feature, REFERENCE, random)
        edges = edges_of(reference)
        known = Histogram.of(histogram(reference, edges))
        for _ in range(windows):
            counts = histogram(draw(feature, n, random), edges)
            drifted += compare(known, counts, LIMITS, min_samples=50).verdict is Verdict.DRIFTED

    assert drifted == 0


@pytest.mark.parametrize("feature", range(5))
def test_planted_shifts_are_found_in_a_window_of_500(feature: int) -> None:
    random = np.random.default_rng(feature)
    reference = draw(feature, REFERENCE, random)
    edges = edges_of(reference)
    moved = draw(feature + 10, 500, random) + reference.std() * (feature in (0, 4))
    if feature == 3:
        moved = np.where(random.random(500) < 0.5, 0.0, 1.0)

    found = compare(
        Histogram.of(histogram(reference, edges)), histogram(moved, edges), LIMITS, min_samples=500
    )

    assert found.verdict is Verdict.DRIFTED


def test_a_tiny_effect_is_stable_however_much_evidence_there_is() -> None:
    random = np.random.default_rng(4)
    reference = random.normal(size=100_000)
    edges = edges_of(reference)

    found = compare(
        Histogram.of(histogram(reference, edges)),
        histogram(random.normal(0.05, 1, 100_000), edges),
        LIMITS,
        min_samples=500,
    )

    assert found.verdict is Verdict.STABLE
    assert min(reading.p_value for reading in found.readings) < 1e-12


def test_too_few_samples_and_an_empty_reference_are_insufficient() -> None:
    full, few = np.array([500, 500]), np.array([10, 0])

    assert compare(Histogram.of(full), few, LIMITS, min_samples=50).verdict is Verdict.INSUFFICIENT
    empty = Histogram.of(np.array([0, 0]))
    assert compare(empty, full, LIMITS, min_samples=50).verdict is Verdict.INSUFFICIENT
