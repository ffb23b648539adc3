"""What a Feast user does against a features server, in an environment with Feast and none of ours.

``python feast_client.py URL PIPELINE FOLDER`` prints one JSON document: each request that the SDK
sent, and what it made of the answer.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas
import requests
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource
from feast.types import Float64
from feast.value_type import ValueType

CONFIGURATION = """\
project: cards
registry: registry.db
provider: local
online_store: {{type: remote, path: "{url}"}}
offline_store: {{type: file}}
entity_key_serialization_version: 3
"""


def main(url: str, pipeline: str, folder: Path) -> None:
    (folder / "feature_store.yaml").write_text(CONFIGURATION.format(url=url))
    store = FeatureStore(str(folder))
    store.apply(definitions(pipeline))
    sent = record()
    part, whole = f"{pipeline}__card", pipeline
    rows = [{"card": "c1", "terminal": "t1"}, {"card": "nobody", "terminal": "t1"}]
    reads = {
        "one view": {
            "features": [f"{part}:card_last", f"{part}:card_mean_30m"],
            "entity_rows": [{"card": row["card"]} for row in rows],
        },
        "two views, full names": {
            "features": [f"{part}:card_last", f"{whole}:terminal_count_1h"],
            "entity_rows": rows,
            "full_feature_names": True,
        },
        "a service": {
            "features": store.get_feature_service(pipeline),
            "entity_rows": [{"card": "c1", "terminal": "t1", "device": "d1"}],
        },
        "an unknown feature": {"features": [f"{part}:card_lst"], "entity_rows": rows[:1]},
    }
    calls = {name: partial(read_online, store, read) for name, read in reads.items()}
    row = {"card": ["c1"], "card_last": [1.0], "card_mean_30m": [1.0]}
    written = pandas.DataFrame(
        {**row, "event_timestamp": [pandas.Timestamp("2026-01-01", tz="UTC")]}
    )
    calls["a write"] = partial(store.write_to_online_store, part, written)
    answers = {name: outcome(call) for name, call in calls.items()}
    print(json.dumps({"sent": dict(zip(calls, sent, strict=True)), "answers": answers}))  # noqa: T201


def definitions(pipeline: str) -> list:
    def entity(name: str) -> Entity:
        return Entity(name=name, join_keys=[name], value_type=ValueType.STRING)

    def view(name: str, entities: list, features: list[str]) -> FeatureView:
        return FeatureView(
            name=name,
            entities=entities,
            schema=[Field(name=feature, dtype=Float64) for feature in features],
            source=FileSource(path="nowhere.parquet", timestamp_field="event_timestamp"),
        )

    card, terminal, device = map(entity, ("card", "terminal", "device"))
    by_card = view(f"{pipeline}__card", [card], ["card_last", "card_mean_30m"])
    whole = view(pipeline, [card, terminal, device], ["card_last", "terminal_count_1h"])
    return [card, terminal, device, by_card, whole, FeatureService(name=pipeline, features=[whole])]


def record() -> list:
    """The list to which every request to the server is appended from now on."""
    sent: list = []
    send = requests.Session.send

    def recorded(session, request, **options):
        sent.append(
            {
                "method": request.method,
                "path": request.path_url,
                "content-type": request.headers.get("Content-Type"),
                "body": (request.body or b"").decode(),
            }
        )
        return send(session, request, **options)

    requests.Session.send = recorded
    return sent


def read_online(store: FeatureStore, read: dict) -> dict:
    return store.get_online_features(**read).to_dict()


def outcome(call: Callable[[], dict | None]) -> dict | str | None:
    try:
        return call()
    except RuntimeError as error:
        return str(error)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
