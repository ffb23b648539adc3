"""The feature view: how the fields of events come to the folds."""

import json
from pathlib import Path

import numpy as np

from homeostat.common.event_columns import event_hashes
from homeostat.common.events import EventContract
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import load

PIPELINE = """\
apiVersion: homeostat/v1
name: logins
owner: risk
source:
  id: id
  time: at
  key: customer
  label: {field: bad, maturity: 1d}
unit: customer
fields:
  id: string
  customer: string
  device: {type: string, optional: true}
  channel: {type: category, values: [web, app], optional: true}
features:
  devices: {entity: customer, aggregate: distinct(device), window: sliding 1d}
  channels: {entity: customer, aggregate: distinct(channel), window: sliding 1d}
  known: {entity: customer, aggregate: count(channel), window: sliding 1d}
"""


def test_texts_and_categories_are_counted_and_nulls_are_not(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(PIPELINE)
    pipeline = load(path)
    view, contract = FeatureView(pipeline), EventContract(pipeline)
    fold = view.folds["customer"]
    logins = [("a", "web"), ("b", "app"), ("a", "web"), (None, None), ("c", None)]
    times = range(1_700_000_000, 1_700_000_005)
    records = [
        json.dumps(
            {"id": str(time), "at": time, "customer": "c1", "device": d, "channel": c}
        ).encode()
        for time, (d, c) in zip(times, logins, strict=True)
    ]
    columns = contract.parse_published_batch(records, [time * 1000 for time in times]).columns
    events = view.events("customer", columns, event_hashes(columns.ids))
    state = fold.new_state()

    seen = fold.fold_events(state, state.intern(columns.strings["customer"]), events)

    named = dict(zip(fold.feature_names, seen.values.T.tolist(), strict=True))
    assert named == {
        "devices": [1, 2, 2, 2, 3],
        "channels": [1, 2, 2, 2, 2],
        "known": [1, 2, 3, 3, 3],
    }


def test_events_of_a_later_contract_are_read_as_an_earlier_one_had_them(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(PIPELINE)
    earlier = FeatureView(load(path))
    path.write_text(PIPELINE.replace("  id: string", "  id: string\n  added: float"))
    numeric = FeatureView(load(path))
    path.write_text(
        PIPELINE.replace("[web, app]", "[pos, app, web]")
        .replace("device: {type: string", "device: {type: float")
        .replace("  id: string", "  id: string\n  added: {type: category, values: [one]}")
    )
    later = load(path)
    record = {"id": "1", "at": 1_700_000_000, "customer": "c1", "added": "one"}
    records = [
        json.dumps({**record, "id": name, "channel": channel, "device": 7}).encode()
        for name, channel in (("1", "web"), ("2", "pos"), ("3", None))
    ]
    read = EventContract(later).parse_published_batch(records, [1_700_000_000_000] * 3).columns

    columns = earlier.conformed(read, later)

    assert columns.strings == {"id": ["1", "2", "3"], "customer": ["c1"] * 3, "device": [None] * 3}
    assert list(columns.numbers) == ["channel"]
    np.testing.assert_array_equal(columns.numbers["channel"], [0, np.nan, np.nan])
    # What is a category now was a number then: its place in a list is none.
    assert np.isnan(numeric.conformed(read, later).numbers["added"]).all()
    assert FeatureView(later).conformed(read, later).numbers.keys() == {
        "channel",
        "device",
        "added",
    }
