"""A seeded payment stream with frauds of known kind and drifts at known instants.

``simulate(Scenario(...))`` gives one Arrow table in event order: what a payment system would send,
the label with the time at which it becomes known, and the truth. Each part of the stream draws from
its own random stream, so ordering a drift leaves every row before its instant as it was.

    python pipelines/fraud/simulator.py --drift new_fraud_pattern@12d --output fraud.parquet
"""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]

MINUTE = 60_000  # instants inside are milliseconds since the scenario's start
HOUR = 60 * MINUTE
DAY = 24 * HOUR

FRAUD_RATE = 0.02
DEVICE_FARM_RATE = 0.025  # of a day's events, while a new fraud pattern lasts
NEWCOMER_SHARE = 0.3  # of the customers, terminals and events, while a population shift lasts
NULL_BURST_SHARE = 0.6  # of the events, while a null burst lasts
UNIT_BUG_FACTOR = 100
LABEL_JITTER = 0.1

# What honest customers do that looks like fraud, one sign at a time.
KIOSK_SHARE = 0.06  # of purchases out of home: a device shared by many, small amounts
SPREE_SHARE = 0.04  # of events: many small purchases within minutes
LARGE_PURCHASE_SHARE = 0.015
GUEST_DEVICE_SHARE = 0.01
VPN_SHARE = 0.003  # of purchases at home: a place abroad

CITIES = 12
CITY_RADIUS_DEGREES = 0.03  # about 3 km
STAY_MS = (
    30 * MINUTE
)  # events closer than this share a place, so that honest travel stays plausible
FAVOURITES = 6
PHYSICAL_TERMINALS = 0.7
MERCHANT_PRICE = (
    0.6,
    0.7,
    0.8,
    1.1,
    1.4,
    2.0,
    2.2,
)  # pharmacy restaurant grocery fuel fashion travel electronics
ABROAD = np.array(
    [[6.5, 3.4], [14.6, 121.0], [-23.5, -46.6], [39.9, 116.4], [25.8, -80.2], [55.8, 37.6]]
)


class ScenarioError(ValueError):
    """The scenario asks for something that cannot be simulated; the message says what to change."""


class DriftKind(StrEnum):
    NEW_FRAUD_PATTERN = "new_fraud_pattern"  # device farms appear, stolen cards stop
    POPULATION_SHIFT = "population_shift"  # newcomers with other amounts, places and hours
    UNIT_BUG = "unit_bug"  # amounts a hundred times too large
    NULL_BURST = "null_burst"  # places missing for a share of the events


class FraudKind(IntEnum):
    NONE = 0
    STOLEN_CARD = 1  # many purchases far above the customer's mean within an hour
    COMPROMISED_TERMINAL = 2  # for days, copied cards used at one terminal
    ACCOUNT_TAKEOVER = 3  # a new device, at a distance nobody travels
    MULE_DEVICE = 4  # for days, one device used in the name of many customers
    DEVICE_FARM = (
        5  # small amounts, many a customer, few short-lived devices; only under NEW_FRAUD_PATTERN
    )


class Channel(IntEnum):
    WEB = 0
    POS = 1
    APP = 2


class DeviceOwner(IntEnum):
    """Keeps the device numbers of different users apart; invisible in the published device id."""

    CUSTOMER = 0
    GUEST = 1
    KIOSK = 2
    THIEF = 3
    TAKEOVER = 4
    MULE = 5
    FARM = 6


NO_DEVICE = -1
DEFAULT_DURATION = {
    DriftKind.UNIT_BUG: timedelta(hours=6),
    DriftKind.NULL_BURST: timedelta(hours=6),
}


@dataclass(frozen=True)
class Drift:
    """One change of the world, ``at`` after the scenario's start.

    Without a ``duration`` a fault lasts six hours, and a change of fraud or population for good.
    ``intensity`` multiplies the share of events that it touches (faults: up to all of them).
    """

    kind: DriftKind
    at: timedelta
    duration: timedelta | None = None
    intensity: float = 1.0

    def __post_init__(self) -> None:
        if self.at < timedelta(0):
            raise ScenarioError(
                f"drift {self.kind}: starts {self.at} before the scenario; use 0d or later"
            )
        if self.duration is not None and self.duration <= timedelta(0):
            raise ScenarioError(f"drift {self.kind}: duration {self.duration} is not positive")
        if not 0 < self.intensity < float("inf"):
            raise ScenarioError(
                f"drift {self.kind}: intensity {self.intensity} is not a positive number"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``KIND@START[+DURATION][*INTENSITY]``.

        >>> Drift.parse("unit_bug@36h+90m").duration
        datetime.timedelta(seconds=5400)
        """
        match = re.fullmatch(r"(\w+)@(\w+)(?:\+(\w+))?(?:\*([\d.]+))?", text)
        if match is None:
            raise ScenarioError(
                f"drift {text!r}: expected KIND@START[+DURATION][*INTENSITY], as unit_bug@5d+6h"
            )
        kind, at, duration, intensity = match.groups()
        return cls(
            kind=_drift_kind(kind),
            at=parse_duration(at),
            duration=parse_duration(duration) if duration else None,
            intensity=_parse_number(intensity) if intensity else 1.0,
        )


@dataclass(frozen=True)
class Scenario:
    """What to simulate. ``events_per_day`` is an expectation, frauds included."""

    seed: int = 7
    start: datetime = datetime(2026, 1, 5, tzinfo=UTC)
    days: float = 20
    customers: int = 2_000
    terminals: int = 400
    events_per_day: float = 10_000
    drifts: tuple[Drift, ...] = ()
    label_delay: timedelta = timedelta(days=1)
    label_share: float = 1.0  # of the events whose label ever arrives

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ScenarioError(f"seed {self.seed} is negative")
        if self.start.tzinfo is None:
            raise ScenarioError(
                f"start {self.start} has no time zone; add one, as 2026-01-05T00:00:00+00:00"
            )
        if not 0 < self.days * self.events_per_day < 1e9:
            raise ScenarioError(
                f"{self.days} days of {self.events_per_day} events: use 1 to 1e9 events in all"
            )
        if self.customers < 1 or self.terminals < 2 * CITIES:
            raise ScenarioError(f"at least 1 customer and {2 * CITIES} terminals are needed")
        if self.label_delay < timedelta(0) or not 0 <= self.label_share <= 1:
            raise ScenarioError(
                "label_delay must not be negative, and label_share lies between 0 and 1"
            )
        for drift in self.drifts:
            if drift.at >= timedelta(days=self.days):
                raise ScenarioError(
                    f"drift {drift.kind}: starts at {drift.at}, after the last of {self.days} days"
                )

    def active(self, kind: DriftKind) -> list[tuple["_Period", float]]:
        """Give the periods and intensities of the drifts of one kind."""
        end = round(self.days * DAY)
        return [
            (_period(drift, end=end), drift.intensity)
            for drift in self.drifts
            if drift.kind is kind
        ]


def simulate(scenario: Scenario) -> pa.Table:
    """Give the scenario's events in the order of their time, with label and truth."""
    whole = _Period(0, round(scenario.days * DAY))
    residents = _population(
        scenario, segment=0, customers=scenario.customers, terminals=scenario.terminals
    )
    parts = [_traffic(scenario, residents, whole, events_per_day=scenario.events_per_day)]
    for segment, (period, intensity) in enumerate(
        scenario.active(DriftKind.POPULATION_SHIFT), start=1
    ):
        share = NEWCOMER_SHARE * intensity
        newcomers = _population(
            scenario,
            segment=segment,
            customers=max(1, round(scenario.customers * share)),
            terminals=max(2 * CITIES, round(scenario.terminals * share)),
        )
        parts.append(
            _traffic(scenario, newcomers, period, events_per_day=scenario.events_per_day * share)
        )
    events = _concatenate(parts)
    return _table(scenario, events.take(np.argsort(events.time, kind="stable")))


def parse_duration(text: str) -> timedelta:
    """Read a duration.

    >>> parse_duration("12d"), parse_duration("90m")
    (datetime.timedelta(days=12), datetime.timedelta(seconds=5400))
    """
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if match is None:
        raise ScenarioError(
            f"duration {text!r}: expected a whole number and one of s, m, h, d, as 12d"
        )
    unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[match[2]]
    return timedelta(**{unit: int(match[1])})


def _parse_number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ScenarioError(f"{text!r} is not a number") from error


def _drift_kind(name: str) -> DriftKind:
    known = [kind.value for kind in DriftKind]
    if name in known:
        return DriftKind(name)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    raise ScenarioError(
        f"unknown drift {name!r}; did you mean {nearest!r}? Known: {', '.join(known)}"
    )


# --- the world


@dataclass(frozen=True)
class _People:
    latitudes: tuple[float, float]
    longitudes: tuple[float, float]
    typical_amount: float
    rhythms: tuple[float, float, float, float]  # shares of office, day, evening and night people


RESIDENTS = _People((44.0, 54.0), (0.0, 15.0), 30.0, (0.4, 0.25, 0.25, 0.1))
NEWCOMERS = _People((36.0, 42.0), (-9.0, -1.0), 90.0, (0.1, 0.1, 0.4, 0.4))


@dataclass(frozen=True)
class _Period:
    begin: int
    end: int

    @property
    def days(self) -> float:
        return (self.end - self.begin) / DAY

    def contains(self, time: Integers) -> Mask:
        return (time >= self.begin) & (time < self.end)


@dataclass(frozen=True)
class _Population:
    """Customers and the terminals that they use. Arrays over customers, unless said otherwise."""

    segment: int
    home: Floats  # latitude, longitude
    mean_amount: Floats
    amount_spread: Floats
    activity: Floats
    rhythm: Integers
    online_share: Floats
    app_share: Floats
    devices: Integers
    favourites: Integers  # physical terminals, FAVOURITES a customer
    city: Integers
    terminal_place: Floats  # over physical terminals
    terminal_price: Floats  # over terminals, physical ones first

    def draw_customers(self, rng: np.random.Generator, count: int) -> Integers:
        """Draw customers in proportion to their activity."""
        return _weighted(rng, self.activity, count)

    def draw_online_terminals(self, rng: np.random.Generator, count: int) -> Integers:
        """Draw online merchants, a few of them far more popular than the rest."""
        physical = len(self.terminal_place)
        online = len(self.terminal_price) - physical
        return physical + np.floor(online * rng.random(count) ** 2).astype(np.int64)

    def draw_favourites(self, rng: np.random.Generator, customer: Integers) -> Integers:
        """Draw a physical terminal near each customer's home, the first favourite most often."""
        rank = np.floor(FAVOURITES * rng.random(len(customer)) ** 2).astype(np.int64)
        chosen: Integers = self.favourites[customer, rank]
        return chosen

    def draw_neighbours(self, rng: np.random.Generator, customer: Integers) -> Integers:
        """Draw, for each customer, someone of the same city."""
        by_city = np.argsort(self.city, kind="stable")
        inhabitants = np.bincount(self.city, minlength=CITIES)
        first = np.cumsum(inhabitants) - inhabitants
        city = self.city[customer]
        rank = np.floor(rng.random(len(city)) * inhabitants[city]).astype(np.int64)
        chosen: Integers = by_city[first[city] + rank]
        return chosen

    def device(self, owner: DeviceOwner, number: Integers) -> Integers:
        return (np.int64(self.segment * len(DeviceOwner) + owner) << 40) + number


def _population(scenario: Scenario, *, segment: int, customers: int, terminals: int) -> _Population:
    rng = _random(scenario, segment, "population")
    people = RESIDENTS if segment == 0 else NEWCOMERS
    latitude, longitude = (
        rng.uniform(*span, CITIES) for span in (people.latitudes, people.longitudes)
    )
    cities = np.column_stack([latitude, longitude])
    physical = round(terminals * PHYSICAL_TERMINALS)
    elsewhere = rng.integers(0, CITIES, physical - CITIES)
    terminal_city = np.sort(np.concatenate([np.arange(CITIES), elsewhere]))
    terminal_place = _around(rng, cities[terminal_city])
    city = terminal_city[rng.integers(0, physical, customers)]  # homes stand where the shops are
    first, count = np.searchsorted(terminal_city, np.arange(CITIES)), np.bincount(terminal_city)
    rank = np.floor(rng.random((customers, FAVOURITES)) * count[city][:, None]).astype(np.int64)
    return _Population(
        segment=segment,
        home=_around(rng, cities[city]),
        mean_amount=rng.lognormal(np.log(people.typical_amount), 0.5, customers),
        amount_spread=rng.uniform(0.3, 0.6, customers),
        activity=rng.gamma(2.0, 1.0, customers) + 0.2,
        rhythm=_weighted(rng, np.array(people.rhythms), customers),
        online_share=rng.beta(2.0, 2.0, customers),
        app_share=rng.beta(1.0, 2.0, customers),
        devices=1 + _weighted(rng, np.array([0.5, 0.35, 0.15]), customers),
        favourites=first[city][:, None] + rank,
        city=city,
        terminal_place=terminal_place,
        terminal_price=rng.choice(MERCHANT_PRICE, terminals),
    )


def _weekly_rhythms() -> Floats:
    """Give the hourly activity, from Monday, of office, day, evening and night people."""

    def bump(peak: float, width: float) -> Floats:
        away = np.abs(np.arange(24) - peak)
        height: Floats = np.exp(-0.5 * (np.minimum(away, 24 - away) / width) ** 2)
        return height

    office, day, evening, night = bump(12, 2) + bump(18, 2), bump(14, 4), bump(20, 3), bump(23, 4)
    weekdays = np.stack([office, day, evening, night]) + 0.03
    weekend = np.stack([day, day, 1.3 * evening, 1.3 * night]) + 0.05
    return np.concatenate([np.tile(weekdays, 5), np.tile(weekend, 2)], axis=1)


def _random(scenario: Scenario, segment: int, purpose: str) -> np.random.Generator:
    """Give the random stream of one purpose: what others draw never moves it."""
    sequence = np.random.SeedSequence(scenario.seed, spawn_key=(segment, *purpose.encode()))
    return np.random.Generator(np.random.PCG64(sequence))


def _around(rng: np.random.Generator, place: Floats) -> Floats:
    return place + rng.normal(0.0, CITY_RADIUS_DEGREES, place.shape)


def _weighted(rng: np.random.Generator, weights: Floats, count: int) -> Integers:
    """Draw positions in proportion to their weights."""
    cumulative = np.cumsum(weights)
    drawn = rng.random(count) * cumulative[-1]
    position: Integers = np.searchsorted(cumulative[:-1], drawn, side="right")
    return position


def _abroad(rng: np.random.Generator, count: int) -> Floats:
    return _around(rng, ABROAD[rng.integers(0, len(ABROAD), count)])


def _period(drift: Drift, *, end: int) -> _Period:
    begin = drift.at // timedelta(milliseconds=1)
    duration = drift.duration or DEFAULT_DURATION.get(drift.kind)
    if duration is not None:
        end = min(end, begin + duration // timedelta(milliseconds=1))
    return _Period(begin, end)


# --- events


@dataclass(frozen=True)
class _Events:
    time: Integers
    segment: Integers
    customer: Integers
    terminal: Integers
    device: Integers
    channel: Integers
    amount: Floats
    place: Floats
    fraud: Integers

    def take(self, rows: Integers | Mask) -> Self:
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def _concatenate(parts: Sequence[_Events]) -> _Events:
    names = [field.name for field in fields(_Events)]
    return _Events(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    )


@dataclass(frozen=True)
class _Wave:
    """About ``volume`` events a day of one kind, by one population, within a period."""

    kind: FraudKind
    rng: np.random.Generator
    population: _Population
    period: _Period
    volume: float

    def incidents(self, *, events: float, longest: int) -> Integers:
        """Draw the starts of incidents of so many events; some begin before the period."""
        begin = self.period.begin - longest
        count = self.rng.poisson(self.volume / events * (self.period.end - begin) / DAY)
        return self.rng.integers(begin, self.period.end, count)

    def events(
        self,
        *,
        time: Integers,
        customer: Integers,
        terminal: Integers,
        device: Integers | int,
        channel: Integers | int,
        amount: Floats,
        place: Floats,
    ) -> _Events:
        """Give the events that lie within the period; one device or channel may stand for all."""
        count = len(time)
        events = _Events(
            time=time,
            segment=np.full(count, self.population.segment),
            customer=customer,
            terminal=terminal,
            device=np.broadcast_to(device, count),
            channel=np.broadcast_to(channel, count),
            amount=amount,
            place=place,
            fraud=np.full(count, int(self.kind)),
        )
        inside = self.period.contains(time)
        return events if inside.all() else events.take(inside)


def _traffic(
    scenario: Scenario, population: _Population, period: _Period, *, events_per_day: float
) -> _Events:
    """Give one population's events of a period, honest and fraudulent."""

    def wave(kind: FraudKind, part: _Period, share: float) -> _Wave:
        purpose = f"{kind.name} {part.begin}"
        rng = _random(scenario, population.segment, purpose)
        return _Wave(kind, rng, population, part, events_per_day * share)

    parts = [_honest(wave(FraudKind.NONE, period, 1 - FRAUD_RATE), start=scenario.start)]
    parts += [
        pattern(wave(kind, period, FRAUD_RATE * share))
        for kind, (share, pattern) in _OLD_PATTERNS.items()
    ]
    known = _concatenate(parts)
    farms: list[_Events] = []
    for new, intensity in scenario.active(DriftKind.NEW_FRAUD_PATTERN):
        gone = (known.fraud == FraudKind.STOLEN_CARD) & new.contains(known.time)
        known = known.take(~gone)
        shared = _Period(max(period.begin, new.begin), min(period.end, new.end))
        if shared.begin < shared.end:
            farm = wave(FraudKind.DEVICE_FARM, shared, DEVICE_FARM_RATE * intensity)
            farms.append(_device_farm(farm, device_life=scenario.label_delay / 2))
    return _concatenate([known, *farms])


def _honest(wave: _Wave, *, start: datetime) -> _Events:
    rng, population = wave.rng, wave.population
    customer, time, spree = _honest_arrivals(wave, start)
    count, begins = len(time), _stay_begins(customer, time)
    stay, guest = np.cumsum(begins) - 1, customer[begins]
    at_home = (rng.random(len(guest)) < population.online_share[guest])[stay]
    shop = population.draw_favourites(rng, guest)[stay]
    app_share = population.app_share[customer] * np.where(at_home, 1.0, 0.5)
    app = spree | (rng.random(count) < app_share)
    kiosk = ~at_home & ~app & (rng.random(count) < KIOSK_SHARE)
    channel = np.where(app, Channel.APP, np.where(at_home | kiosk, Channel.WEB, Channel.POS))
    pos = channel == Channel.POS
    terminal = np.where(pos, shop, population.draw_online_terminals(rng, count))

    spread = population.amount_spread[customer]
    amount = population.mean_amount[customer] * rng.lognormal(-0.5 * spread**2, spread)
    amount *= population.terminal_price[terminal]
    large = rng.random(count) < LARGE_PURCHASE_SHARE
    amount *= np.where(large, rng.uniform(3, 8, count), 1.0)
    amount = np.where(kiosk, rng.uniform(1, 12, count), amount)
    amount = np.where(spree, rng.uniform(0.5, 8, count), amount)

    kiosks = max(
        1, round(wave.volume * KIOSK_SHARE * 0.35 / CITIES / 25)
    )  # 25 customers a day each
    kiosk_number = population.city[customer] * kiosks + shop % kiosks
    device = np.where(
        kiosk,
        population.device(DeviceOwner.KIOSK, kiosk_number),
        _own_device(rng, population, customer),
    )
    shop_place = population.terminal_place[shop]
    place = np.where(at_home[:, None], population.home[customer], shop_place)
    vpn = at_home & (rng.random(count) < VPN_SHARE)
    return wave.events(
        time=time,
        customer=customer,
        terminal=terminal,
        device=np.where(pos, NO_DEVICE, device),
        channel=channel,
        amount=amount,
        place=np.where(vpn[:, None], _abroad(rng, count), place),
    )


def _honest_arrivals(wave: _Wave, start: datetime) -> tuple[Integers, Integers, Mask]:
    """Give customer, time and whether part of a spree, ordered by customer and time."""
    rng, population = wave.rng, wave.population
    expected = wave.volume * wave.period.days
    singles = rng.poisson(expected * (1 - SPREE_SHARE))
    sprees = rng.poisson(expected * SPREE_SHARE / 7)
    customer = population.draw_customers(rng, singles + sprees)
    time = _rhythmic_times(rng, population.rhythm[customer], wave.period, start=start)
    spree, within = _bursts(rng, 4 + rng.poisson(3, sprees), mean_gap=2 * MINUTE)
    time = np.concatenate([time[:singles], time[singles:][spree] + within])
    customer = np.concatenate([customer[:singles], customer[singles:][spree]])
    order = np.lexsort((time, customer))
    return customer[order], time[order], order >= singles


def _rhythmic_times(
    rng: np.random.Generator, rhythm: Integers, period: _Period, *, start: datetime
) -> Integers:
    """Draw an instant of the period for each event, by its customer's habits."""
    hours = np.arange(period.begin // HOUR, -(-period.end // HOUR))
    monday = start.astimezone(UTC)
    weekly = _weekly_rhythms()[:, (monday.weekday() * 24 + monday.hour + hours) % 168]
    hour = np.empty(len(rhythm), dtype=np.int64)
    for kind, weights in enumerate(weekly):
        chosen = np.flatnonzero(rhythm == kind)
        hour[chosen] = hours[_weighted(rng, weights, len(chosen))]
    return hour * HOUR + rng.integers(0, HOUR, len(rhythm))


def _stay_begins(customer: Integers, time: Integers) -> Mask:
    """Mark where, among events by customer and time, someone may have moved to another place."""
    begins = np.ones(len(time), dtype=np.bool_)
    begins[1:] = (np.diff(customer) != 0) | (np.diff(time) > STAY_MS)
    return begins


def _own_device(rng: np.random.Generator, population: _Population, customer: Integers) -> Integers:
    count = len(customer)
    which = np.floor(population.devices[customer] * rng.random(count) ** 2).astype(np.int64)
    own = population.device(DeviceOwner.CUSTOMER, customer * 4 + which)
    guest = population.device(DeviceOwner.GUEST, customer * 64 + rng.integers(0, 64, count))
    return np.where(rng.random(count) < GUEST_DEVICE_SHARE, guest, own)


def _bursts(
    rng: np.random.Generator, sizes: Integers, *, mean_gap: float
) -> tuple[Integers, Integers]:
    """Give, for each event of each burst, the burst's number and the time since its start."""
    burst = np.repeat(np.arange(len(sizes)), sizes)
    elapsed = np.cumsum(rng.exponential(mean_gap, len(burst)))
    first = np.cumsum(sizes) - sizes
    return burst, (elapsed - elapsed[first[burst]]).astype(np.int64)


def _lives(
    rng: np.random.Generator, life: Integers, *, events_per_day: float
) -> tuple[Integers, Integers]:
    """Give, for each event of each long incident, its number and the time since its start."""
    incident = np.repeat(np.arange(len(life)), rng.poisson(life / DAY * events_per_day))
    return incident, (rng.random(len(incident)) * life[incident]).astype(np.int64)


# --- frauds


def _stolen_card(wave: _Wave) -> _Events:
    rng, population = wave.rng, wave.population
    starts = wave.incidents(events=8, longest=HOUR)
    incident, within = _bursts(rng, 4 + rng.poisson(4, len(starts)), mean_gap=3 * MINUTE)
    count = len(incident)
    customer = population.draw_customers(rng, len(starts))[incident]
    pos = rng.random(count) < 0.6
    shop = population.draw_favourites(rng, customer)
    thief = population.device(DeviceOwner.THIEF, incident)
    return wave.events(
        time=starts[incident] + within,
        customer=customer,
        terminal=np.where(pos, shop, population.draw_online_terminals(rng, count)),
        device=np.where(pos, NO_DEVICE, thief),
        channel=np.where(pos, Channel.POS, Channel.WEB),
        amount=population.mean_amount[customer] * rng.uniform(3, 10, count),
        place=np.where(pos[:, None], population.terminal_place[shop], population.home[customer]),
    )


def _compromised_terminal(wave: _Wave) -> _Events:
    rng, population = wave.rng, wave.population
    starts = wave.incidents(events=6 * 30, longest=8 * DAY)
    life = rng.integers(4 * DAY, 8 * DAY, len(starts))
    incident, within = _lives(rng, life, events_per_day=30)
    known_by = population.draw_customers(rng, len(starts))
    shop = population.draw_favourites(rng, known_by)[incident]
    customer = population.draw_neighbours(rng, known_by[incident])
    return wave.events(
        time=starts[incident] + within,
        customer=customer,
        terminal=shop,
        device=NO_DEVICE,
        channel=Channel.POS,
        amount=population.mean_amount[customer] * rng.uniform(1.5, 4, len(incident)),
        place=population.terminal_place[shop],
    )


def _account_takeover(wave: _Wave) -> _Events:
    rng, population = wave.rng, wave.population
    starts = wave.incidents(events=4, longest=HOUR)
    incident, within = _bursts(rng, 2 + rng.poisson(2, len(starts)), mean_gap=5 * MINUTE)
    count = len(incident)
    customer = population.draw_customers(rng, len(starts))[incident]
    return wave.events(
        time=starts[incident] + within,
        customer=customer,
        terminal=population.draw_online_terminals(rng, count),
        device=population.device(DeviceOwner.TAKEOVER, incident),
        channel=np.where(rng.random(count) < 0.8, Channel.WEB, Channel.APP),
        amount=population.mean_amount[customer] * rng.uniform(1, 4, count),
        place=_abroad(rng, len(starts))[incident],
    )


def _mule_device(wave: _Wave) -> _Events:
    rng, population = wave.rng, wave.population
    starts = wave.incidents(events=2 * 25, longest=3 * DAY)
    life = rng.integers(DAY, 3 * DAY, len(starts))
    incident, within = _lives(rng, life, events_per_day=25)
    count = len(incident)
    customer = population.draw_customers(rng, count)
    return wave.events(
        time=starts[incident] + within,
        customer=customer,
        terminal=population.draw_online_terminals(rng, count),
        device=population.device(DeviceOwner.MULE, incident),
        channel=Channel.WEB,
        amount=population.mean_amount[customer] * rng.uniform(1, 3, count),
        place=population.home[customer],  # behind an address in the customer's town
    )


def _device_farm(wave: _Wave, *, device_life: timedelta) -> _Events:
    """Try many customers' cards with small amounts; a device goes before its first label comes."""
    rng, population = wave.rng, wave.population
    starts = wave.incidents(events=8, longest=0)
    incident, within = _bursts(rng, 5 + rng.poisson(3, len(starts)), mean_gap=2 * MINUTE)
    count = len(incident)
    customer = population.draw_customers(rng, len(starts))[incident]
    life = max(1, min(DAY // 2, device_life // timedelta(milliseconds=1)))
    devices = max(1, round(wave.volume * life / DAY / 120))  # at a time, about 120 events each
    batch = starts // life  # counted from the scenario's start: two farms never share a device
    device = batch * devices + rng.integers(0, devices, len(starts))
    return wave.events(
        time=starts[incident] + within,
        customer=customer,
        terminal=population.draw_online_terminals(rng, count),
        device=population.device(DeviceOwner.FARM, device[incident]),
        channel=Channel.WEB,
        amount=rng.uniform(0.5, 8, count),
        place=population.home[customer],
    )


_OLD_PATTERNS: dict[FraudKind, tuple[float, Callable[[_Wave], _Events]]] = {
    FraudKind.STOLEN_CARD: (0.45, _stolen_card),  # share of the frauds
    FraudKind.COMPROMISED_TERMINAL: (0.15, _compromised_terminal),
    FraudKind.ACCOUNT_TAKEOVER: (0.2, _account_takeover),
    FraudKind.MULE_DEVICE: (0.2, _mule_device),
}


# --- the table


def _table(scenario: Scenario, events: _Events) -> pa.Table:
    count = len(events.time)
    cents, place = np.maximum(1, np.rint(events.amount * 100)), np.round(events.place, 5)
    for period, intensity in scenario.active(DriftKind.UNIT_BUG):
        cents[_touched(scenario, "unit bug", period, events.time, share=intensity)] *= (
            UNIT_BUG_FACTOR
        )
    for period, intensity in scenario.active(DriftKind.NULL_BURST):
        share = NULL_BURST_SHARE * intensity
        place[_touched(scenario, "null burst", period, events.time, share=share)] = np.nan
    start = round(scenario.start.timestamp() * 1000)
    rng = _random(scenario, 0, "labels")
    jitter = rng.uniform(1 - LABEL_JITTER, 1 + LABEL_JITTER, count)
    delay = (scenario.label_delay / timedelta(milliseconds=1) * jitter).astype(np.int64)
    unlabelled = rng.random(count) >= scenario.label_share
    fraud_kinds = pa.array([kind.name.lower() for kind in FraudKind])
    channels = pa.array([channel.name.lower() for channel in Channel])
    return pa.table(
        {
            "transaction_id": _numbered(f"tx-{scenario.seed}-", np.arange(count), width=9),
            "event_time": _instants(start + events.time),
            "customer_id": _numbered("c", events.segment * 10**7 + events.customer, width=8),
            "terminal_id": _numbered("t", events.segment * 10**7 + events.terminal, width=8),
            "device_id": _opaque(events.device),
            "amount": pa.array(cents / 100),
            "channel": channels.take(pa.array(events.channel)),
            "latitude": pa.array(place[:, 0], mask=np.isnan(place[:, 0])),
            "longitude": pa.array(place[:, 1], mask=np.isnan(place[:, 1])),
            "card_number": _card_numbers(events.segment * 10**7 + events.customer),
            "is_fraud": pa.array(
                (events.fraud != FraudKind.NONE).astype(np.int64), mask=unlabelled
            ),
            "label_time": _instants(start + events.time + delay, mask=unlabelled),
            "fraud_kind": fraud_kinds.take(pa.array(events.fraud)),
        }
    )


def _touched(
    scenario: Scenario, fault: str, period: _Period, time: Integers, *, share: float
) -> Mask:
    drawn = _random(scenario, 0, f"{fault} {period.begin}").random(len(time))
    return period.contains(time) & (drawn < share)


def _instants(milliseconds: Integers, mask: Mask | None = None) -> pa.Array:
    return pa.array(milliseconds, mask=mask).cast(pa.timestamp("ms", tz="UTC"))


def _numbered(prefix: str, numbers: Integers, *, width: int) -> pa.Array:
    digits = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width=width, padding="0")
    return pc.binary_join_element_wise(pa.scalar(prefix), digits, pa.scalar(""))


def _card_numbers(numbers: Integers) -> pa.Array:
    """Give 16 digits that begin with 0, which no card issuer's do."""
    scattered = (
        numbers * 736_481 % 10**15
    )  # the factor shares no divisor with 10: no two cards collide
    return _numbered("", scattered, width=16)


def _opaque(devices: Integers) -> pa.Array:
    """Give device ids of 16 hexadecimal digits that do not show the owner (as splitmix64 mixes)."""
    mixed = devices.astype(np.uint64)
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(factor)
    digits = (mixed ^ (mixed >> np.uint64(32))).astype(">u8").tobytes().hex().encode()
    return pa.array(np.frombuffer(digits, dtype="S16"), mask=devices == NO_DEVICE).cast(pa.string())


# --- the command


def main(arguments: Sequence[str] | None = None) -> int:
    defaults = Scenario()
    parser = argparse.ArgumentParser(
        description="Write a simulated payment stream with frauds to a Parquet file."
    )
    parser.add_argument("--output", type=Path, required=True, help="the Parquet file to write")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument(
        "--start", type=datetime.fromisoformat, default=defaults.start, help="RFC 3339, with zone"
    )
    parser.add_argument("--days", type=float, default=defaults.days)
    parser.add_argument("--customers", type=int, default=defaults.customers)
    parser.add_argument("--terminals", type=int, default=defaults.terminals)
    parser.add_argument("--events-per-day", type=float, default=defaults.events_per_day)
    parser.add_argument("--label-delay", default="1d", help="as 90m, 12h, 7d")
    parser.add_argument("--label-share", type=float, default=defaults.label_share)
    parser.add_argument(
        "--drift",
        action="append",
        default=[],
        metavar="KIND@START[+DURATION][*INTENSITY]",
        help=f"may be repeated; kinds: {', '.join(DriftKind)}",
    )
    options = parser.parse_args(arguments)
    try:
        scenario = Scenario(
            seed=options.seed,
            start=options.start,
            days=options.days,
            customers=options.customers,
            terminals=options.terminals,
            events_per_day=options.events_per_day,
            drifts=tuple(Drift.parse(text) for text in options.drift),
            label_delay=parse_duration(options.label_delay),
            label_share=options.label_share,
        )
    except ScenarioError as error:
        parser.error(str(error))
    table = simulate(scenario)
    pq.write_table(table, options.output, compression="zstd")
    rate = 1 - pc.mean(pc.equal(table["fraud_kind"], "none")).as_py()
    sys.stdout.write(f"{options.output}: {table.num_rows:,} events, {rate:.2%} fraud\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
