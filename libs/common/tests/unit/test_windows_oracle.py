"""Every aggregate over every window, against a recomputation from all events by definition.

The oracle is plain Python over lists and fractions: it shares nothing with the kernels but the
meaning.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from homeostat.common.durations import whole_milliseconds
from homeostat.common.windows import (
    LABEL,
    Absent,
    AggregateFeature,
    EntityFold,
    Events,
    Function,
    State,
    Status,
    WindowKind,
    parse_aggregate,
    parse_window,
)

LATENESS = timedelta(seconds=20)
START = 1_700_000_000_000
SCALES = {"amount": 0.01, "label": 0.01, "latitude": 1.0, "longitude": 1.0}


@dataclass(frozen=True)
class Event:
    """One event; amounts in hundredths, so that they are exact. None is null."""

    time: int  # epoch ms
    hash: int
    amount: int | None
    latitude: int = 0
    longitude: int = 0
    label: int | None = None  # in hundredths too; None: it has not come
    terminal: int | None = None  # the hash of a text


def moment(event: Event) -> tuple[int, int]:
    """The order of events: by time, then by hash as an int64."""
    return event.time, event.hash - (event.hash >> 63 << 64)


OUT_OF_REACH = math.nan


def covered(
    feature: AggregateFeature, events: Sequence[Event], at: int
) -> tuple[float, float] | None:
    """The first and the last millisecond that a read looks at; None: there may be more of them."""
    window = feature.window
    if window.size is None:
        return -math.inf, math.inf
    if window.kind is WindowKind.SESSION:
        return session(sorted(event.time for event in events), whole_milliseconds(window.size), at)
    size, head = whole_milliseconds(window.size), at - whole_milliseconds(feature.delay)
    if window.kind in (WindowKind.TUMBLING, WindowKind.HOPPING):
        advance = whole_milliseconds(window.advance or window.size)
        end = (math.floor(Fraction(head, advance)) + window.open) * advance
        return end - size, end - 1
    pane = math.ceil(Fraction(size, 64))
    if feature.delay:
        end = math.floor(Fraction(head + 1, pane)) * pane
        return end - math.ceil(Fraction(size, pane)) * pane, end - 1
    return math.floor(Fraction(head - size + 1, pane)) * pane, pane_end(head, pane)


def session(times: Sequence[int], gap: int, at: int) -> tuple[int, int] | None:
    pane = math.ceil(Fraction(gap, 16))
    reach = whole_milliseconds(LATENESS) // pane + 1024 + 2
    oldest = pane_end(times[-1], pane) + 1 - reach * pane
    kept = [time for time in times if oldest <= time <= pane_end(at, pane)]
    if not kept:
        return None
    start = last = kept[-1]
    for time in reversed(kept):
        if start - time > gap:
            break
        start = time
    longest = pane_end(last, pane) + 1 - 1024 * pane
    if longest < oldest and start == kept[0] and start - oldest < gap:
        return None
    return max(start, longest), last


def pane_end(instant: int, pane: int) -> int:
    """A read before the newest event sees the pane of its head whole."""
    return math.floor(Fraction(instant, pane)) * pane + pane - 1


def value(
    feature: AggregateFeature, events: Sequence[Event], at: int, absent: Absent
) -> float | None:
    """The value of a feature over all events of an entity; None is null."""
    function = feature.aggregate.function
    ordered = sorted(events, key=moment)
    if function is Function.SECONDS_SINCE_LAST:
        before = [event.time for event in ordered if event.time < at]
        return (at - before[-1]) / 1000 if before else None
    if not feature.aggregate.needs_window:
        return newest(feature, [event for event in ordered if event.time <= at])
    if feature.window.kind is WindowKind.DECAY:
        return decayed(feature, ordered, at, absent)
    extent = covered(feature, events, at)
    if extent is None:
        return OUT_OF_REACH
    first, last = extent
    inside = [event for event in ordered if first <= event.time <= last]
    if function is Function.RATE:
        return len(inside) / feature.window.size.total_seconds() if feature.window.size else None
    if not feature.aggregate.fields:
        return float(len(inside))
    (field,) = feature.aggregate.fields
    is_label = field == LABEL
    units = [value for event in inside if (value := getattr(event, field)) is not None]
    if function is Function.DISTINCT:
        return distinct(units)
    if function is Function.QUANTILE:
        return quantile(units, feature.aggregate.parameter or 0)
    values = [Fraction(value, 100) for value in units]
    count = len(inside) if is_label and absent is Absent.ZERO else len(values)
    return computed(function, values, count)


def computed(function: Function, values: Sequence[Fraction], count: int) -> float | None:
    match function:
        case Function.COUNT:
            return float(count)
        case Function.MEAN:
            return float(sum(values) / count) if count else None
        case Function.STD:
            if not count:
                return None
            mean = sum(values) / count
            around = sum((x - mean) ** 2 for x in values) + (count - len(values)) * mean**2
            return math.sqrt(around / count)
        case Function.SUM:
            return float(sum(values, Fraction(0)))
        case Function.MIN:
            return float(min(values)) if values else None
        case Function.MAX:
            return float(max(values)) if values else None
        case Function.FIRST:
            return float(values[0]) if values else None
        case Function.LAST:
            return float(values[-1]) if values else None
    raise AssertionError(function)


def distinct(words: Sequence[int]) -> float:
    """HyperLogLog by its definition, with Ertl's estimator."""
    ranks: dict[int, int] = {}
    for word in words:
        bits = mixed(word)
        register, rest = bits >> 54, bits & (2**54 - 1)
        ranks[register] = max(ranks.get(register, 0), 55 - rest.bit_length())
    if not ranks:
        return 0.0
    held = Counter(ranks.values())
    x, y = 1 - len(ranks) / 1024, 1 - held[55] / 1024
    sigma = x + sum(x ** (2**k) * 2 ** (k - 1) for k in range(1, 20))
    tau = (1 - y - sum((1 - y**2**-k) ** 2 * 2**-k for k in range(1, 60))) / 3
    middle = sum(count * 2.0**-rank for rank, count in held.items() if rank < 55)
    return float(round(1024**2 / (2 * math.log(2)) / (1024 * (sigma + tau * 2**-54) + middle)))


def mixed(word: int) -> int:
    """SplitMix64's finalizer."""
    z = (word + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def quantile(units: Sequence[int], q: float) -> float | None:
    if not units:
        return None
    exact = sorted(units)[math.floor(q * (len(units) - 1))]
    octave = max(abs(exact).bit_length() - 7, 0)
    middle = (abs(exact) >> octave << octave) + (2**octave - 1) / 2
    return math.copysign(middle, exact) / 100


def decayed(
    feature: AggregateFeature, events: Sequence[Event], at: int, absent: Absent
) -> float | None:
    size = whole_milliseconds(feature.window.size or timedelta(0))
    pane, is_label = math.ceil(Fraction(size, 16)), feature.aggregate.fields == (LABEL,)
    counts_all = not feature.aggregate.fields or (is_label and absent is Absent.ZERO)
    count = total = 0.0
    for event in events:
        if not 0 <= at // pane - event.time // pane < 384:
            continue
        middle = event.time // pane * pane + pane / 2
        weight = 0.5 ** ((at - middle) / size) * (1 + math.log(2) / size * (event.time - middle))
        units = event.label if is_label else event.amount
        count += weight if counts_all or units is not None else 0.0
        total += weight * (units or 0) / 100
    match feature.aggregate.function:
        case Function.COUNT:
            return count
        case Function.SUM:
            return total
    return total / count if count else None


def newest(feature: AggregateFeature, events: Sequence[Event]) -> float | None:
    function, k = feature.aggregate.function, int(feature.aggregate.parameter or 0)
    if function is Function.LAST_K:
        amounts = [event.amount for event in events if event.amount is not None]
        return amounts[-k] / 100 if len(amounts) >= k else None
    if len(events) < 2:
        return None
    kilometres = distance(*events[-2:])
    if function is Function.DISTANCE:
        return kilometres
    hours = (events[-1].time - events[-2].time) / 3_600_000
    return kilometres / hours if hours else None


def distance(one: Event, other: Event) -> float:
    points = [
        (
            math.cos(math.radians(e.latitude)) * math.cos(math.radians(e.longitude)),
            math.cos(math.radians(e.latitude)) * math.sin(math.radians(e.longitude)),
            math.sin(math.radians(e.latitude)),
        )
        for e in (one, other)
    ]
    return 2 * 6371.0088 * math.asin(min(math.dist(*points) / 2, 1.0))


EDGED = [
    "sliding 1s",
    "sliding 90s",
    "tumbling 7s",
    "tumbling 7s open",
    "hopping 21s every 3s",
    "hopping 6s every 2s open",
]


SESSIONS = ["session 30ms", "session 3s", "session 40s"]


DECAYS = ["decay 1s", "decay 30s", "decay 1h"]


def features() -> list[AggregateFeature]:
    windows = [*EDGED, *SESSIONS, "lifetime"]
    on_fields = ["sum", "mean", "min", "max", "std", "first", "last", "count"]
    plain = [
        AggregateFeature(f"{of}_{window}", parse_aggregate(f"{of}(amount)"), parse_window(window))
        for window in windows
        for of in on_fields
    ]
    counts = [
        AggregateFeature(f"events_{window}", parse_aggregate("count()"), parse_window(window))
        for window in windows
    ]
    labels = [
        AggregateFeature(
            f"label_{name}_{window}_{delay}",
            parse_aggregate(f"{name}(label)"),
            parse_window(window),
            timedelta(seconds=delay),
        )
        for window in [*EDGED, *SESSIONS]
        for name in ["count", "mean", "sum", "std", "max", "last"]
        for delay in [0, 11]
        if window in EDGED or not delay
    ]
    sketches = [
        AggregateFeature(f"{text}_{window}", parse_aggregate(text), parse_window(window))
        for window in windows
        for text in [
            "distinct(amount)",
            "distinct(terminal)",
            "count(terminal)",
            "distinct(label)",
            "quantile(amount, 0.5)",
            "quantile(amount, 1)",
            "quantile(label, 0)",
        ]
    ]
    rates = [
        AggregateFeature(f"rate_{window}", parse_aggregate("rate()"), parse_window(window))
        for window in EDGED
    ]
    decays = [
        AggregateFeature(f"{text}_{window}", parse_aggregate(text), parse_window(window))
        for window in DECAYS
        for text in [
            "count()",
            "count(amount)",
            "sum(amount)",
            "mean(amount)",
            "mean(label)",
            "sum(label)",
        ]
    ]
    recent = [
        AggregateFeature("since", parse_aggregate("seconds_since_last()")),
        *(
            AggregateFeature(text, parse_aggregate(text))
            for text in [
                "speed(latitude, longitude)",
                "distance(latitude, longitude)",
                "last_k(amount, 1)",
                "last_k(amount, 3)",
            ]
        ),
    ]
    return [*plain, *counts, *labels, *sketches, *rates, *decays, *recent]


FEATURES = features()
FOLDS = {
    absent: EntityFold(
        "card", FEATURES, scales=SCALES, texts=["terminal"], lateness=LATENESS, absent=absent
    )
    for absent in Absent
}

# The first example may have to compile the kernels, and a busy machine draws slowly.
seeded = settings(
    deadline=None,
    max_examples=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)

amounts = st.one_of(st.none(), st.integers(-(10**9), 10**9), st.integers(-3, 3))
terminals = st.one_of(st.none(), st.integers(1, 4), st.integers(1, 2**64 - 1))
gaps = st.one_of(st.integers(0, 40), st.integers(0, 4_000), st.integers(0, 60_000))


@st.composite
def histories(draw: st.DrawFn, *, most: int = 16) -> list[Event]:
    """Events in an order of arrival in which none is later than the lateness."""
    count = draw(st.integers(1, most))
    times = np.cumsum([draw(gaps) for _ in range(count)]) + START
    hashes = st.lists(st.integers(0, 2**64 - 1), min_size=count, max_size=count, unique=True)
    ids, late = draw(hashes), whole_milliseconds(LATENESS)
    arrivals = [draw(st.integers(0, late)) for _ in range(count)]
    order = sorted(range(count), key=lambda i: (times[i] + arrivals[i], i))
    return [
        Event(
            time=int(times[i]),
            hash=ids[i],
            amount=draw(amounts),
            latitude=draw(st.integers(-90, 90)),
            longitude=draw(st.integers(-180, 180)),
            label=draw(st.sampled_from([None, 0, 100])),
            terminal=draw(terminals),
        )
        for i in order
    ]


def columns(fold: EntityFold, events: Sequence[Event]) -> Events:
    return fold.events(
        [event.time for event in events],
        np.array([event.hash for event in events], np.uint64),
        {
            "amount": [math.nan if e.amount is None else e.amount / 100 for e in events],
            "latitude": [float(event.latitude) for event in events],
            "longitude": [float(event.longitude) for event in events],
            "terminal": np.array([event.terminal or 0 for event in events], np.uint64),
        },
    )


def label_columns(fold: EntityFold, events: Sequence[Event]) -> Events:
    return fold.labels(
        [event.time for event in events],
        np.array([event.hash for event in events], np.uint64),
        [math.nan if e.label is None else e.label / 100 for e in events],
    )


def folded(fold: EntityFold, events: Sequence[Event], labelled: Sequence[Event]) -> State:
    state = fold.new_state()
    one = state.intern(["key"])
    if events:
        fold.fold_events(state, one.repeat(len(events)), columns(fold, events))
    labelled = [event for event in labelled if event.label is not None]
    if labelled:
        fold.fold_labels(state, one.repeat(len(labelled)), label_columns(fold, labelled))
    return state


def assert_is(
    values: NDArray[np.float64],
    statuses: NDArray[np.uint8],
    expected: Sequence[float | None],
) -> None:
    for feature, got, status, wanted in zip(FEATURES, values, statuses, expected, strict=True):
        if wanted is None:
            assert (math.isnan(got), Status(int(status))) == (True, Status.NULL), feature
        elif math.isnan(wanted):
            assert (math.isnan(got), Status(int(status))) == (True, Status.UNAVAILABLE), feature
        else:
            assert Status(int(status)) is Status.PRESENT, feature
            assert got == pytest.approx(wanted, rel=1e-9, abs=1e-5), feature


@seeded
@given(events=histories(), absent=st.sampled_from(Absent))
def test_each_event_sees_at_its_own_time_what_the_definition_says(
    events: list[Event], absent: Absent
) -> None:
    fold, state = FOLDS[absent], FOLDS[absent].new_state()
    unlabelled = [replace(event, label=None) for event in events]

    seen = fold.fold_events(state, state.intern(["key"] * len(events)), columns(fold, unlabelled))

    assert not seen.beyond_reach.any()
    for i, event in enumerate(events):
        arrived = unlabelled[: i + 1]
        expected = [value(feature, arrived, event.time, absent) for feature in FEATURES]
        within = sum(other.time > event.time for other in arrived) <= 6
        if within:  # else what looks at the newest events may say that it no longer knows
            assert_is(seen.values[i], seen.statuses[i], expected)


@seeded
@given(
    events=histories(),
    absent=st.sampled_from(Absent),
    wait=st.integers(-whole_milliseconds(LATENESS), 200_000),
)
def test_a_read_at_any_time_sees_events_and_labels(
    events: list[Event], absent: Absent, wait: int
) -> None:
    fold = FOLDS[absent]
    state = folded(fold, events, events)
    at = max(event.time for event in events) + wait

    values, statuses = fold.evaluate(state, state.find(["key"]), [at])

    if sum(event.time >= at for event in events) <= 6:
        expected = [value(feature, events, at, absent) for feature in FEATURES]
        assert_is(values[0], statuses[0], expected)


@seeded
@given(events=histories(), wait=st.integers(0, 100_000), half_life=st.sampled_from([1, 7, 600]))
def test_decay_is_within_its_stated_error(events: list[Event], wait: int, half_life: int) -> None:
    window = parse_window(f"decay {half_life}s")
    features = [
        AggregateFeature(text, parse_aggregate(text), window) for text in ["sum(amount)", "count()"]
    ]
    fold = EntityFold("card", features, scales=SCALES, lateness=LATENESS)
    amounts = [abs(event.amount or 1) for event in events]
    positive = [
        replace(event, amount=amount) for event, amount in zip(events, amounts, strict=True)
    ]
    state = folded(fold, positive, [])
    at = max(event.time for event in events) + wait

    values, _ = fold.evaluate(state, state.find(["key"]), [at])

    weights = [0.5 ** ((at - event.time) / 1000 / half_life) for event in positive]
    total = sum(weight * amount / 100 for weight, amount in zip(weights, amounts, strict=True))
    lost = 0.5**23.9  # of what an event weighed, once it is older than 24 half-lives
    assert values[0, 0] == pytest.approx(total, rel=3e-4, abs=sum(amounts) / 100 * lost)
    assert values[0, 1] == pytest.approx(sum(weights), rel=3e-4, abs=len(events) * lost)


@seeded
@given(data=st.data(), events=histories())
def test_any_order_of_arrival_gives_the_same_bytes(
    data: st.DataObject, events: list[Event]
) -> None:
    fold = FOLDS[Absent.ZERO]
    shuffled = data.draw(st.permutations(events))
    labelled = data.draw(st.permutations(events))

    first, second = folded(fold, events, events), folded(fold, shuffled, labelled)

    assert fold.pack(first, first.find(["key"])) == fold.pack(second, second.find(["key"]))


@seeded
@given(data=st.data(), events=histories())
def test_merging_parts_in_any_way_equals_folding_the_whole(
    data: st.DataObject, events: list[Event]
) -> None:
    fold = FOLDS[Absent.ZERO]
    parts: list[list[Event]] = [[], [], []]
    for event in events:
        parts[data.draw(st.integers(0, 2))].append(event)
    whole = folded(fold, events, events)
    row = whole.find(["key"])

    packed = []
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        merged = fold.new_state()
        into = merged.intern(["key"])
        for number in order:
            part = folded(fold, parts[number], parts[number])
            fold.merge(merged, into, part, part.find(["key"]))
        packed.append(fold.pack(merged, into))
    left, right = (folded(fold, part, part) for part in parts[1:])
    fold.merge(left, left.find(["key"]), right, right.find(["key"]))
    grouped = folded(fold, parts[0], parts[0])
    fold.merge(grouped, grouped.find(["key"]), left, left.find(["key"]))

    assert [*packed, fold.pack(grouped, grouped.find(["key"]))] == [fold.pack(whole, row)] * 4


@seeded
@given(events=histories(most=60))
def test_a_packed_row_comes_back_and_answers_alike(events: list[Event]) -> None:
    fold = FOLDS[Absent.DROP]
    state = folded(fold, events, events)
    row, at = state.find(["key"]), [events[-1].time]
    packed = fold.pack(state, row)

    again = fold.new_state()
    fold.unpack(again, again.intern(["key"]), packed)

    assert fold.pack(again, again.find(["key"])) == packed
    np.testing.assert_equal(
        fold.evaluate(again, again.find(["key"]), at), fold.evaluate(state, row, at)
    )
    assert len(packed[0]) <= fold.bytes_per_entity_bound


@seeded
@given(events=histories(most=45), is_known=st.booleans())
def test_a_read_with_the_own_event_equals_folding_it_first(
    events: list[Event], is_known: bool
) -> None:
    fold, own = FOLDS[Absent.DROP], events[-1]
    before = folded(fold, events if is_known else events[:-1], [])
    packed = fold.pack(before, before.intern(["key"]))
    if len(events) == 1 and not is_known:
        packed = [b""]
    after = folded(fold, events, [])

    read = fold.read([packed[0] or None], [own.time], columns(fold, [own]))

    expected = fold.evaluate(after, after.find(["key"]), [own.time])
    newer = sum(moment(event) > moment(own) for event in events)
    if newer < 32:
        np.testing.assert_equal((read.values, read.statuses), tuple(expected))
        assert read.is_merged.tolist() == [not is_known]
