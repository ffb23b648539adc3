"""The window fold's edges: what is declared, packed, refused, evicted and out of reach."""

import math
from datetime import timedelta
from fractions import Fraction
from typing import SupportsInt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.common.durations import format_duration, parse_duration
from homeostat.common.windows import (
    LIFETIME,
    Absent,
    AggregateFeature,
    EntityFold,
    Status,
    UnreadableRow,
    Window,
    WindowKind,
    parse_aggregate,
    parse_window,
)
from homeostat.common.windows.integers import add128, multiply64, squared_deviations, to_float

NOON = 1_700_000_000_000
MINUTE = timedelta(minutes=1)


def feature(
    aggregate: str, window: str = "lifetime", *, name: str = "x", delay: timedelta = timedelta(0)
) -> AggregateFeature:
    return AggregateFeature(name, parse_aggregate(aggregate), parse_window(window), delay)


def one_event(fold: EntityFold, time: int, amount: float, *, number: int = 1) -> bytes:
    state = fold.new_state()
    row = state.intern(["key"])
    fold.fold_events(state, row, fold.events([time], [number], {"amount": [amount]}))
    return fold.pack(state, row)[0]


AMOUNTS = EntityFold("card", [feature("sum(amount)", "sliding 30m")], scales={"amount": 0.01})


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("sliding 30m", Window(WindowKind.SLIDING, timedelta(minutes=30))),
        ("tumbling 250ms", Window(WindowKind.TUMBLING, timedelta(milliseconds=250))),
        ("tumbling 2w open", Window(WindowKind.TUMBLING, timedelta(weeks=2), open=True)),
        (
            "hopping 1h every 5m",
            Window(WindowKind.HOPPING, timedelta(hours=1), advance=timedelta(minutes=5)),
        ),
        (
            "hopping 1d every 1h open",
            Window(WindowKind.HOPPING, timedelta(days=1), open=True, advance=timedelta(hours=1)),
        ),
        ("decay 1h", Window(WindowKind.DECAY, timedelta(hours=1))),
        ("session 30m", Window(WindowKind.SESSION, timedelta(minutes=30))),
        ("lifetime", LIFETIME),
    ],
)
def test_a_window_is_read_and_written_alike(text: str, window: Window) -> None:
    assert parse_window(text) == window
    assert str(window) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("slidng 30m", "did you mean 'sliding'"),
        ("sliding", "needs a size"),
        ("sliding 0s", "needs a size"),
        ("lifetime 3d", "has no size"),
        ("sliding 30", "30m or 7d"),
        ("sliding 5m open", "belongs to tumbling"),
        ("session", "for example `session 30m`"),
        ("decay 999ms", "a half-life is a second at least"),
        ("session 5m open", "belongs to tumbling"),
        ("tumbling 5m shut", "means nothing"),
        ("hopping 5m", "write `hopping 1h every 5m`"),
        ("hopping 5m every", "is not a duration"),
        ("hopping 5m every 2m", "not a whole number of advances"),
        ("hopping 1m every 2m", "not a whole number of advances"),
        ("hopping 5m every 0s", "needs an advance"),
        ("hopping 5m every 1m shut", "means nothing"),
        ("sliding 5m every 1m", "write `hopping`"),
        ("", "unknown window"),
    ],
)
def test_a_window_that_cannot_be_says_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_window(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("maen(amount)", "did you mean 'mean'"),
        ("mean", "write a call"),
        ("mean()", r"write mean\(field\)"),
        ("mean(a, b)", r"write mean\(field\)"),
        ("speed(latitude)", r"write speed\(latitude, longitude\)"),
        ("speed(label, longitude)", "cannot look at labels"),
        ("distance(latitude)", r"write distance\(latitude, longitude\)"),
        ("rate(amount)", r"write rate\(\)"),
        ("last_k(amount)", r"write last_k\(field, k\)"),
        ("last_k(3, amount)", "'amount', which is not a number"),
        ("distinct()", r"write distinct\(field\)"),
        ("quantile(amount)", r"write quantile\(field, q\)"),
        ("quantile(0.5, amount)", "'amount', which is not a number"),
        ("quantile(amount, 50)", "a share from 0 to 1"),
        ("quantile(amount, nan)", "a share from 0 to 1"),
        ("last_k(amount, 0)", "from 1 to 100"),
        ("last_k(amount, 1.5)", "from 1 to 100"),
        ("last_k(amount, nan)", "from 1 to 100"),
        ("sum(a.b)", "not the name of a field"),
        ("count(a, b)", r"count\(\) or count\(field\)"),
    ],
)
def test_an_aggregate_that_cannot_be_says_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_aggregate(text)


@pytest.mark.parametrize(
    "text",
    ["count()", "mean(x)", "last_k(x, 3)", "quantile(x, 0.95)", "quantile(x, 1)", "speed(x, y)"],
)
def test_an_aggregate_is_read_and_written_alike(text: str) -> None:
    assert str(parse_aggregate(text)) == text


def test_a_feature_refuses_a_window_or_a_delay_that_would_do_nothing() -> None:
    with pytest.raises(ValueError, match="takes no window"):
        feature("seconds_since_last()", "sliding 1h")
    with pytest.raises(ValueError, match="needs a sliding, tumbling or hopping window"):
        feature("mean(label)", delay=MINUTE)
    with pytest.raises(ValueError, match="needs a sliding, tumbling or hopping window"):
        feature("mean(label)", "session 5m", delay=MINUTE)
    with pytest.raises(ValueError, match="needs a sliding, tumbling or hopping window"):
        feature("mean(label)", "decay 5m", delay=MINUTE)
    with pytest.raises(ValueError, match="divides by the size"):
        feature("rate()")
    with pytest.raises(ValueError, match="knows no weights; under decay 5m write count, sum, mean"):
        feature("max(amount)", "decay 5m")


def test_a_window_of_too_many_panes_is_refused_before_anything_is_folded() -> None:
    with pytest.raises(ValueError, match="lengthen the window or shorten the lateness"):
        EntityFold("card", [feature("count()", "sliding 1s")], lateness=timedelta(days=30))


@pytest.mark.parametrize("scale", [0.0, -1.0, 0.3, math.nan, math.inf, 2.5])
def test_a_scale_that_is_no_unit_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        EntityFold("card", [feature("sum(amount)")], scales={"amount": scale})


@given(milliseconds=st.integers(0, 10**12))
def test_a_duration_is_read_and_written_alike(milliseconds: int) -> None:
    duration = timedelta(milliseconds=milliseconds)

    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize("text", ["", "5", "m", "1.5h", "-3s", "5 m", "1y", "9" * 12 + "w"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


def test_definition_hash_and_packed_bytes_never_change_by_accident() -> None:
    fold = EntityFold(
        "customer_id",
        [
            feature("mean(amount)", "sliding 30m"),
            feature("std(amount)", "tumbling 5m"),
            feature("last(amount)"),
            feature("mean(label)", "sliding 7d", delay=timedelta(days=7)),
            feature("speed(latitude, longitude)"),
        ],
        scales={"amount": 0.01},
        lateness=timedelta(minutes=5),
        absent=Absent.ZERO,
    )
    state = fold.new_state()
    rows = state.intern(["a", "a"])
    columns = {"amount": [1.5, -20], "latitude": [48.1, math.nan], "longitude": [11.5, 11.6]}
    fold.fold_events(state, rows, fold.events([NOON, NOON - 10], [7, 2**64 - 1], columns))
    fold.fold_labels(state, rows[:1], fold.labels([NOON], [7], [1.0]))

    (packed,) = fold.pack(state, rows[:1])

    assert (fold.definition_hash, packed.hex(), fold.bytes_per_entity_bound) == GOLDEN


GOLDEN = (
    "d00249c667ebbf4e65b026e2afdeb07a1d86513dcb9ad5f79fe11886dfae906e",
    "0100d00249c667ebbf4e80a0abfef9620413ffffffffffffffff140700000000000000020080a0abfef9"
    "620700000000000000ac02020004f31c01020004f31c01c883eb030002000480897a0002000700000000"
    "000000c0caef2dc0e7fb0a",
    9478,
)


def test_packed_bytes_of_sketches_sessions_and_decay_never_change_by_accident() -> None:
    fold = EntityFold(
        "customer_id",
        [
            feature("distinct(device)", "sliding 1h"),
            feature("quantile(amount, 0.5)", "hopping 1h every 5m"),
            feature("mean(amount)", "session 30m"),
            feature("sum(amount)", "decay 1h"),
            feature("last_k(amount, 3)"),
        ],
        scales={"amount": 0.01},
        texts=["device"],
    )
    state = fold.new_state()
    rows = state.intern(["a", "a"])
    columns = {"amount": np.array([1.5, -2_000.0]), "device": np.array([11, 12], np.uint64)}
    fold.fold_events(state, rows, fold.events([NOON, NOON - 400_000], [7, 2**64 - 1], columns))

    (packed,) = fold.pack(state, rows[:1])

    assert (fold.definition_hash, packed.hex(), fold.bytes_per_entity_bound) == GOLDEN_SKETCHES


GOLDEN_SKETCHES = (
    "eadb09bce635014e1e12c3e4efc234c682374cde45763002d219e3d186201222",
    "0100eadb09bce635014e80a0abfef96204ffe930ffffffffffffffff80ea300700000000000000040702"
    "ffb4180180b6fafdf96280b6fafdf9620802ac020080a0abfef96280a0abfef9620403ffb41801fff7cc"
    "e284020104ac0200e0e8f0110004ffe930ffffffffffffffffffb41880ea300700000000000000ac0204"
    "0da009020e8605020401c10c0202960202",
    1417266,
)


def test_names_and_order_of_features_leave_the_definition_alone() -> None:
    features = [feature("mean(amount)", "sliding 1h"), feature("count()", "tumbling 5m")]
    renamed = [feature("count()", "tumbling 5m", name="n"), feature("mean(amount)", "sliding 60m")]

    first, second = EntityFold("card", features), EntityFold("card", renamed)

    assert first.definition_hash == second.definition_hash
    assert one_event(first, NOON, 1.0) == one_event(second, NOON, 1.0)


def test_whatever_changes_the_bits_changes_the_definition() -> None:
    base = feature("mean(amount)", "sliding 1h")
    folds = [
        EntityFold("card", [base]),
        EntityFold("device", [base]),
        EntityFold("card", [base], scales={"amount": 0.01}),
        EntityFold("card", [base], lateness=MINUTE),
        EntityFold("card", [base], absent=Absent.ZERO),
        EntityFold("card", [feature("sum(amount)", "sliding 1h")]),
        EntityFold("card", [feature("mean(amount)", "sliding 2h")]),
        EntityFold("card", [feature("mean(amount)", "sliding 1h", delay=MINUTE)]),
    ]

    assert len({fold.definition_hash for fold in folds}) == len(folds)


def test_an_unknown_entity_is_missing_and_an_empty_window_is_null() -> None:
    fold = EntityFold(
        "card", [feature("mean(amount)", "sliding 1m"), feature("count()", "sliding 1m")]
    )
    packed = one_event(fold, NOON, 3.0)

    read = fold.read([packed, packed, None], [NOON, NOON + 600_000, NOON])

    np.testing.assert_array_equal(read.values, [[3, 1], [math.nan, 0], [math.nan, math.nan]])
    assert [[Status(int(s)) for s in row] for row in read.statuses] == [
        [Status.PRESENT, Status.PRESENT],
        [Status.NULL, Status.PRESENT],
        [Status.MISSING, Status.MISSING],
    ]


def test_an_event_beyond_reach_is_reported_and_leaves_the_window_alone() -> None:
    state, late = AMOUNTS.new_state(), NOON - 3_600_000
    rows = state.intern(["key", "key"])

    seen = AMOUNTS.fold_events(
        state, rows, AMOUNTS.events([NOON, late], [1, 2], {"amount": [1.0, 50.0]})
    )

    assert seen.beyond_reach.tolist() == [False, True]
    assert Status(int(seen.statuses[1, 0])) is Status.UNAVAILABLE
    assert AMOUNTS.evaluate(state, rows[:1], [NOON]).values.tolist() == [[1.0]]


def test_a_session_without_end_is_covered_for_64_gaps() -> None:
    fold = EntityFold("card", [feature("count()", "session 16s")], lateness=MINUTE)
    state, count, start = fold.new_state(), 3_000, 1_699_999_984_000
    rows = state.intern(["key"] * count)

    seen = fold.fold_events(
        state, rows, fold.events(start + np.arange(count) * 1_000, range(count), {})
    )

    assert seen.values[:, 0].tolist() == [*range(1, 1025), *[1024.0] * (count - 1024)]
    late = fold.evaluate(state, rows[:2], start + 1_000 * np.array([count - 61, count - 300]))
    assert late.values[0, 0] == 1024.0
    assert late.statuses[:, 0].tolist() == [Status.PRESENT, Status.UNAVAILABLE]


def test_a_session_that_is_over_stays_until_another_begins() -> None:
    fold = EntityFold("card", [feature("sum(amount)", "session 1m")], scales={"amount": 1})
    packed = one_event(fold, NOON, 3.0)

    read = fold.read([packed] * 2, [NOON, NOON + 10**9])

    assert read.values[:, 0].tolist() == [3.0, 3.0]


def test_a_text_can_be_counted_and_nothing_else() -> None:
    with pytest.raises(ValueError, match=r"only count\(field\) and distinct\(field\)"):
        EntityFold("card", [feature("max(terminal)")], texts=["terminal"])


@pytest.mark.parametrize("count", [5, 300, 3_000, 20_000])
def test_a_distinct_count_is_within_its_stated_error(count: int) -> None:
    fold, trials = EntityFold("card", [feature("distinct(amount)")], scales={"amount": 1}), 40
    state = fold.new_state()
    for trial in range(trials):
        values = np.arange(count) + trial * count
        rows = state.intern([str(trial)]).repeat(count)
        fold.fold_events(state, rows, fold.events([NOON] * count, values, {"amount": values}))

    estimates = fold.evaluate(state, np.arange(trials, dtype=np.int32), [NOON] * trials).values

    errors = estimates[:, 0] / count - 1
    assert math.sqrt(float(np.mean(errors**2))) < 0.0325 * 1.25  # 40 trials tell it to 1 in 4
    assert abs(float(np.mean(errors))) < 0.0325 / math.sqrt(trials) * 3


@settings(deadline=None, derandomize=True)
@given(
    values=st.lists(st.integers(-(2**53), 2**53), min_size=1, max_size=30),
    q=st.floats(0, 1),
)
def test_a_quantile_is_within_its_stated_error(values: list[int], q: float) -> None:
    fold = EntityFold("card", [feature(f"quantile(amount, {q!r})")], scales={"amount": 1})
    state, count = fold.new_state(), len(values)
    rows = state.intern(["key"] * count)

    seen = fold.fold_events(
        state, rows, fold.events([NOON] * count, range(count), {"amount": values})
    )

    exact = sorted(values)[math.floor(q * (count - 1))]
    assert seen.values[-1, 0] == pytest.approx(exact, rel=1 / 128, abs=0)


def test_a_sketch_that_is_full_keeps_its_newest_cells_in_any_order() -> None:
    fold = EntityFold(
        "card",
        [feature("quantile(label, 0.5)", "tumbling 4s"), feature("distinct(label)", "sliding 9s")]
        + [feature("quantile(label, 0.5)", f"hopping {size}s every 4s") for size in (8, 160)],
        scales={"label": 1},
        lateness=MINUTE,
    )
    count, random = 140_000, np.random.default_rng(7)
    times = NOON + np.sort(random.integers(0, 160_000, count))
    values = np.exp(random.uniform(0, 36, count)) * random.choice([-1, 1], count)
    packed = []
    for order in (np.arange(count), np.argsort(times + random.integers(0, 2_000, count))):
        state = fold.new_state()
        rows = state.intern(["key"]).repeat(count)
        fold.fold_labels(state, rows, fold.labels(times[order], order, values[order]))
        packed += fold.pack(state, rows[:1])

    read = fold.read(packed[:1], [NOON + 160_000])

    assert packed[0] == packed[1]
    assert len(packed[0]) <= fold.bytes_per_entity_bound
    assert read.statuses[0].tolist() == [Status.PRESENT] * 3 + [Status.UNAVAILABLE]


def test_an_event_without_a_key_is_folded_nowhere() -> None:
    state = AMOUNTS.new_state()

    seen = AMOUNTS.fold_events(
        state, state.intern([None]), AMOUNTS.events([NOON], [1], {"amount": [1.0]})
    )

    assert (seen.statuses.tolist(), len(state)) == ([[Status.MISSING]], 0)


def test_a_value_too_large_for_its_scale_is_a_null_and_is_counted() -> None:
    events = AMOUNTS.events([NOON] * 4, [1, 2, 3, 4], {"amount": [1.0, math.nan, 1e300, -math.inf]})

    assert events.valid[:, 0].tolist() == [True, False, False, False]
    assert events.out_of_range == 2


def test_labels_are_refused_where_nothing_uses_them() -> None:
    with pytest.raises(ValueError, match="uses the label"):
        AMOUNTS.labels([NOON], [1], [1.0])


def test_a_row_recognises_its_newest_32_events() -> None:
    state = AMOUNTS.new_state()
    rows = state.intern(["key"] * 40)
    ids = np.arange(40)
    AMOUNTS.fold_events(state, rows, AMOUNTS.events(NOON + ids, ids, {"amount": np.ones(40)}))

    known = AMOUNTS.contains(state, rows, ids)

    assert known.tolist() == [False] * 8 + [True] * 32
    assert not AMOUNTS.contains(state, state.find(["other"]), [39]).any()


def test_a_read_merges_only_the_own_events_it_is_given() -> None:
    own = AMOUNTS.events([NOON] * 3, [1, 2, 2], {"amount": [5.0, 5.0, 5.0]})
    packed = one_event(AMOUNTS, NOON, 2.0, number=1)

    read = AMOUNTS.read([packed] * 3, [NOON] * 3, own, merge=[True, True, False])

    assert read.values[:, 0].tolist() == [2.0, 7.0, 2.0]
    assert read.is_merged.tolist() == [False, True, False]


def test_cold_rows_go_first_and_none_goes_before_it_was_stored() -> None:
    state = AMOUNTS.new_state()
    keys = [f"key-{i}" for i in range(100)]
    events = AMOUNTS.events([NOON] * 100, range(100), {"amount": np.ones(100)})
    AMOUNTS.fold_events(state, state.intern(keys), events)

    before = state.evict_cold(keep=10)
    stored = AMOUNTS.pack(state, state.take_changed())
    AMOUNTS.evaluate(state, state.find(["key-3"]), [NOON])
    state.touch(state.find(["key-5"]))
    state.take_changed()
    after = state.evict_cold(keep=10)

    assert (before, len(stored), len(after), len(state)) == ([], 100, 90, 10)
    assert "key-5" in state
    assert "key-0" not in state


def test_an_evicted_row_comes_back_into_the_space_it_left() -> None:
    state = AMOUNTS.new_state()
    events = AMOUNTS.events([NOON], [1], {"amount": [1.0]})
    for i in range(200):
        row = state.intern([f"key-{i}"])
        AMOUNTS.fold_events(state, row, events)
        packed = AMOUNTS.pack(state, state.take_changed())
        state.evict_cold(keep=0)
    used = state.memory_bytes

    row = state.intern(["key-0"])
    AMOUNTS.unpack(state, row, packed)

    assert AMOUNTS.pack(state, row) == packed
    assert (state.memory_bytes, len(state)) == (used, 1)


def test_a_state_grows_with_its_keys() -> None:
    fold = EntityFold("card", [feature("std(amount)", "sliding 1h"), feature("first(amount)")])
    state, count = fold.new_state(), 5_000
    keys = [f"key-{i % 700}" for i in range(count)]
    times = NOON + np.arange(count) * 1_000
    rows = state.intern(keys)

    fold.fold_events(state, rows, fold.events(times, range(count), {"amount": np.arange(count)}))

    packed = fold.pack(state, state.intern(keys[:700]))
    read = fold.read(packed, np.full(700, times[-1]))
    np.testing.assert_array_equal(read.values[:, 1], np.arange(700))
    assert len(state) == 700


def test_bytes_of_another_definition_are_refused_with_both_names() -> None:
    other = EntityFold("card", [feature("sum(amount)", "sliding 1h")])

    with pytest.raises(UnreadableRow, match=other.definition_hash[:16]):
        AMOUNTS.read([one_event(other, NOON, 1.0)], [NOON])


DAMAGED = {
    name: EntityFold("card", [feature(name, "sliding 30m")], scales={"amount": 0.01})
    for name in ["sum(amount)", "distinct(amount)", "quantile(amount, 0.5)"]
}


@settings(deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_read_but_never_crash(data: st.DataObject) -> None:
    fold = DAMAGED[data.draw(st.sampled_from(sorted(DAMAGED)))]
    packed = bytearray(one_event(fold, NOON, 2.0))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(10, len(packed) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(packed[: data.draw(st.integers(10, len(packed)))])

    try:
        read = fold.read([cut], [NOON])
    except UnreadableRow:
        return
    assert int(read.statuses[0, 0]) in set(Status)


def test_a_longer_row_than_it_says_is_damaged() -> None:
    with pytest.raises(UnreadableRow, match="packed row 1 of the batch"):
        AMOUNTS.read(
            [one_event(AMOUNTS, NOON, 2.0), one_event(AMOUNTS, NOON, 2.0) + b"\0"], [NOON] * 2
        )


def test_a_batch_of_the_wrong_shape_is_refused() -> None:
    state = AMOUNTS.new_state()
    rows = state.intern(["a", "b"])

    with pytest.raises(ValueError, match="2 events of 1 fields belong"):
        AMOUNTS.fold_events(state, rows, AMOUNTS.events([NOON], [1], {"amount": [1.0]}))
    with pytest.raises(IndexError, match="no row 999"):
        AMOUNTS.evaluate(state, np.array([999], np.int32), [NOON])


words = st.integers(-(2**63), 2**63 - 1)


def limbs(number: int) -> tuple[np.int64, np.int64]:
    low = number & (2**64 - 1)
    return np.int64(low - (low >> 63 << 64)), np.int64(number >> 64)


def integer(low: SupportsInt, high: SupportsInt) -> int:
    return (int(high) << 64) + (int(low) & (2**64 - 1))


@settings(deadline=None)
@given(a=words, b=words, c=st.integers(-(2**120), 2**120), d=st.integers(-(2**120), 2**120))
def test_128_bit_arithmetic_is_exact(a: int, b: int, c: int, d: int) -> None:
    assert integer(*multiply64(np.int64(a), np.int64(b))) == a * b
    assert integer(*add128(*limbs(c), *limbs(d))) == c + d
    assert float(to_float(*limbs(c))) == pytest.approx(float(c), rel=4e-16)


@settings(deadline=None)
@given(
    values=st.lists(st.integers(-1_000, 1_000), min_size=1, max_size=30),
    offset=st.integers(-(2**53) + 1_000, 2**53 - 1_000),
)
def test_deviations_far_from_zero_lose_nothing(values: list[int], offset: int) -> None:
    moved = [value + offset for value in values]
    mean = Fraction(sum(values), len(values))

    around = squared_deviations(
        np.int64(len(moved)), *limbs(sum(moved)), *limbs(sum(x * x for x in moved))
    )

    assert float(around) == pytest.approx(float(sum((x - mean) ** 2 for x in values)), rel=1e-12)
