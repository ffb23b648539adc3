"""The feature view: how the fields of events come to the folds."""

import json
from pathlib import Path

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
