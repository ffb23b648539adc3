"""The simulator keeps its word: one table a seed, known frauds, drifts at their instant."""

import hashlib
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipelines.fraud.simulator import (
    UNIT_BUG_FACTOR,
    Drift,
    Scenario,
    ScenarioError,
    main,
    parse_duration,
    simulate,
)

START = datetime(2026, 1, 5, tzinfo=UTC)
DAYS = 8
TRUTH = {"is_fraud", "label_time", "fraud_kind"}
DEVICE_SHAPE = "^[0-9a-f]{16}$"


@cache
def stream(*drifts: str, seed: int = 7) -> pa.Table:
    return simulate(
        Scenario(seed=seed, days=DAYS, drifts=tuple(Drift.parse(drift) for drift in drifts))
    )


def between(table: pa.Table, begin: timedelta, end: timedelta) -> pa.Table:
    time = table["event_time"]
    after = pc.greater_equal(time, pa.scalar(START + begin, time.type))
    return table.filter(pc.and_(after, pc.less(time, pa.scalar(START + end, time.type))))


def days(number: float) -> timedelta:
    return timedelta(days=number)


def column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = table[name].to_numpy()
    return values


def digest(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()


def honest(table: pa.Table) -> pa.Table:
    return table.filter(pc.equal(table["fraud_kind"], "none"))


def kinds(table: pa.Table) -> set[str]:
    return set(table["fraud_kind"].to_pylist()) - {"none"}


def test_the_same_seed_gives_the_same_table() -> None:
    drifts = tuple(Drift.parse(text) for text in ("new_fraud_pattern@4d", "population_shift@5d"))
    scenario = Scenario(seed=11, days=DAYS, drifts=drifts)

    assert digest(simulate(scenario)) == digest(simulate(scenario))
    assert digest(stream(seed=7)) != digest(stream(seed=8))


def test_the_command_writes_the_same_table_in_another_process(tmp_path: Path) -> None:
    script = Path(sys.modules[simulate.__module__].__file__ or "")
    output = tmp_path / "fraud.parquet"
    drift = "null_burst@6h"

    subprocess.run(
        [sys.executable, script, "--seed=3", "--days=1", "--drift", drift, "--output", output],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
        stdout=subprocess.DEVNULL,
    )

    scenario = Scenario(seed=3, days=1, drifts=(Drift.parse(drift),))
    assert pq.read_table(output).equals(simulate(scenario))


def test_events_come_in_order_with_unique_ids_inside_the_scenario() -> None:
    table = stream("new_fraud_pattern@4d", "population_shift@4d")

    assert np.all(np.diff(column(table, "event_time").astype(np.int64)) >= 0)
    assert len(pc.unique(table["transaction_id"])) == table.num_rows
    assert between(table, days(0), days(DAYS)).num_rows == table.num_rows


def test_labels_arrive_about_one_delay_after_their_event() -> None:
    scenario = Scenario(days=2, label_delay=timedelta(hours=6), label_share=0.9)

    table = simulate(scenario)

    labelled = table.filter(pc.is_valid(table["label_time"]))
    hours = (column(labelled, "label_time") - column(labelled, "event_time")) / np.timedelta64(
        1, "h"
    )
    assert hours.min() >= 5.4
    assert hours.max() <= 6.6
    assert labelled.num_rows / table.num_rows == pytest.approx(0.9, abs=0.01)
    assert table["is_fraud"].null_count == table["label_time"].null_count


@pytest.mark.parametrize("seed", range(3))
def test_about_two_in_a_hundred_events_are_frauds_of_the_four_known_kinds(seed: int) -> None:
    table = simulate(Scenario(seed=seed, days=20))

    assert 0.015 <= pc.mean(table["is_fraud"]).as_py() <= 0.025
    assert kinds(table) == {
        "stolen_card",
        "compromised_terminal",
        "account_takeover",
        "mule_device",
    }


def test_the_label_agrees_with_the_truth() -> None:
    table = stream("new_fraud_pattern@4d")

    fraud = pc.not_equal(table["fraud_kind"], "none")
    assert pc.cast(fraud, pa.int64()).equals(table["is_fraud"])


def test_only_the_truth_columns_tell_a_fraud_from_its_form() -> None:
    table = stream("new_fraud_pattern@4d")
    online = table.filter(pc.not_equal(table["channel"], "pos"))

    assert set(table.column_names) - TRUTH == {
        "transaction_id", "event_time", "customer_id", "terminal_id", "device_id", "amount",
        "channel", "latitude", "longitude", "card_number",
    }  # fmt: skip
    assert pc.all(pc.match_substring_regex(online["device_id"], DEVICE_SHAPE)).as_py()
    assert set(pc.utf8_length(table["card_number"]).to_pylist()) == {16}
    assert set(pc.utf8_length(table["customer_id"]).to_pylist()) == {9}
    for name in ("device_id", "customer_id", "terminal_id"):
        rank = np.argsort(np.argsort(online[name].to_numpy(zero_copy_only=False)))
        fraud = column(online, "is_fraud") == 1
        assert rank[fraud].mean() / rank.mean() == pytest.approx(1.0, abs=0.1), name


def test_card_numbers_belong_to_one_customer_and_to_no_issuer() -> None:
    table = stream()

    pairs = set(
        zip(table["card_number"].to_pylist(), table["customer_id"].to_pylist(), strict=True)
    )
    assert (
        len(pairs) == len(pc.unique(table["card_number"])) == len(pc.unique(table["customer_id"]))
    )
    assert pc.all(pc.starts_with(table["card_number"], "0")).as_py()


def test_a_device_is_given_online_and_missing_at_a_point_of_sale() -> None:
    table = stream()

    assert pc.is_null(table["device_id"]).equals(pc.equal(table["channel"], "pos"))


def test_amounts_have_two_decimals_and_are_positive() -> None:
    amounts = column(stream("unit_bug@4d"), "amount")

    assert np.array_equal(np.round(amounts, 2), amounts)
    assert amounts.min() >= 0.01


def travel_speeds(table: pa.Table) -> npt.NDArray[np.float64]:
    """Give km/h between consecutive events of each customer."""
    customer = table["customer_id"].to_numpy(zero_copy_only=False)
    time = column(table, "event_time").astype("datetime64[ms]").astype(np.int64)
    order = np.lexsort((time, customer))
    latitude, longitude = (
        np.radians(column(table, name))[order] for name in ("latitude", "longitude")
    )
    half = (
        np.sin(np.diff(latitude) / 2) ** 2
        + np.cos(latitude[1:]) * np.cos(latitude[:-1]) * np.sin(np.diff(longitude) / 2) ** 2
    )
    hours = np.maximum(np.diff(time[order]), 60_000) / 3_600_000
    same = customer[order][1:] == customer[order][:-1]
    speeds: npt.NDArray[np.float64] = (12_742 * np.arcsin(np.sqrt(half)) / hours)[same]
    return speeds


def test_honest_customers_travel_at_plausible_speed_and_stolen_accounts_do_not() -> None:
    table = stream()
    takeover = table.filter(pc.equal(table["fraud_kind"], "account_takeover"))
    incidents = len(pc.unique(takeover["device_id"]))

    speeds = travel_speeds(honest(table))
    with_takeovers = travel_speeds(pa.concat_tables([honest(table), takeover]))

    assert np.quantile(speeds, 0.99) < 120
    assert (speeds > 900).mean() < 0.005  # a few customers use a VPN
    assert (with_takeovers > 900).sum() - (speeds > 900).sum() > incidents


def test_activity_follows_the_hour() -> None:
    hour = pc.hour(stream()["event_time"]).to_numpy()

    assert (hour == 18).sum() > 5 * (hour == 4).sum()


@pytest.mark.parametrize(
    "drift", ["new_fraud_pattern@5d", "population_shift@5d", "unit_bug@5d", "null_burst@5d"]
)
def test_a_drift_leaves_every_event_before_its_instant_as_it_was(drift: str) -> None:
    without, drifted = stream(), stream(drift)

    assert between(drifted, days(0), days(5)).equals(between(without, days(0), days(5)))
    assert not between(drifted, days(5), days(5.25)).equals(between(without, days(5), days(5.25)))


@pytest.mark.parametrize("drift", ["unit_bug@5d+6h", "null_burst@5d+6h"])
def test_a_fault_leaves_every_event_after_its_end_as_it_was(drift: str) -> None:
    assert between(stream(drift), days(5.25), days(8)).equals(
        between(stream(), days(5.25), days(8))
    )


def test_a_new_fraud_pattern_replaces_stolen_cards_by_device_farms() -> None:
    table = stream("new_fraud_pattern@5d")

    before, after = between(table, days(0), days(5)), between(table, days(5), days(DAYS))
    assert kinds(before) - kinds(after) == {"stolen_card"}
    assert kinds(after) - kinds(before) == {"device_farm"}
    farm = after.filter(pc.equal(after["fraud_kind"], "device_farm"))
    assert farm.num_rows / after.num_rows == pytest.approx(0.025, rel=0.3)
    assert pc.max(farm["amount"]).as_py() <= 8
    devices = farm.group_by("device_id").aggregate([("customer_id", "count_distinct")])
    assert pc.mean(devices["customer_id_count_distinct"]).as_py() > 8


def test_farm_devices_are_gone_before_their_first_label_arrives() -> None:
    table = stream("new_fraud_pattern@3d")

    farm = table.filter(pc.equal(table["fraud_kind"], "device_farm"))
    uses = farm.group_by("device_id").aggregate([("event_time", "min"), ("event_time", "max")])
    lives = column(uses, "event_time_max") - column(uses, "event_time_min")
    assert lives.max() < np.timedelta64(18, "h")


def test_a_population_shift_brings_customers_with_other_amounts_and_places() -> None:
    table = stream("population_shift@5d")

    known = pc.unique(between(table, days(0), days(5))["customer_id"])
    after = honest(between(table, days(5), days(DAYS)))
    new = pc.starts_with(after["customer_id"], "c1")
    newcomers, residents = after.filter(new), after.filter(pc.invert(new))
    assert not pc.any(pc.is_in(newcomers["customer_id"], value_set=known)).as_py()
    assert newcomers.num_rows / residents.num_rows == pytest.approx(0.3, abs=0.05)
    ratio = pc.mean(newcomers["amount"]).as_py() / pc.mean(residents["amount"]).as_py()
    assert ratio > 2
    assert pc.quantile(newcomers["latitude"], 0.9)[0].as_py() < 44


def test_a_unit_bug_multiplies_amounts_while_it_lasts() -> None:
    right, wrong = (
        between(table, days(5), days(5.25)) for table in (stream(), stream("unit_bug@5d"))
    )

    assert np.allclose(column(wrong, "amount"), UNIT_BUG_FACTOR * column(right, "amount"))


def test_a_null_burst_hides_both_coordinates_of_a_share_of_events() -> None:
    table = between(stream("null_burst@5d*0.5"), days(5), days(5.25))

    assert table["latitude"].null_count / table.num_rows == pytest.approx(0.3, abs=0.05)
    assert pc.is_null(table["latitude"]).equals(pc.is_null(table["longitude"]))
    assert stream()["latitude"].null_count == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unit_bag@5d", "did you mean 'unit_bug'"),
        ("unit_bug", "KIND@START"),
        ("unit_bug@5w", "expected a whole number and one of s, m, h, d"),
        ("unit_bug@5d*1.2.3", "not a number"),
        ("unit_bug@5d+0h", "not positive"),
        ("unit_bug@5d*0", "not a positive number"),
    ],
)
def test_a_wrong_drift_is_refused_with_its_fix(text: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message.replace("*", r"\*")):
        Drift.parse(text)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"days": 0}, "days"),
        ({"start": START.replace(tzinfo=None)}, "time zone"),
        ({"terminals": 3}, "terminals"),
        ({"label_share": 2}, "label_share"),
        ({"seed": -1}, "seed"),
        ({"days": 3, "drifts": (Drift.parse("unit_bug@4d"),)}, "after the last"),
    ],
)
def test_an_impossible_scenario_is_refused_with_its_fix(
    wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ScenarioError, match=message):
        Scenario(**wrong)


def test_the_command_names_the_wrong_option_and_exits_with_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--output", str(tmp_path / "x.parquet"), "--drift", "nul_burst@1d"])

    assert stopped.value.code == 2
    assert "did you mean 'null_burst'" in capsys.readouterr().err


def test_durations_are_read_in_seconds_minutes_hours_and_days() -> None:
    read = [parse_duration(text) for text in ("30s", "90m", "6h", "12d")]

    assert read == [
        timedelta(seconds=30), timedelta(minutes=90), timedelta(hours=6), timedelta(days=12)
    ]  # fmt: skip
