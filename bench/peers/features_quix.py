"""Quix Streams: five hopping windows (`hopping`), or tumbling ones, which cost a sixtieth of them
and say less (`tumbling`); the current value of each window after each event; no changelog."""

import sys
import tempfile
from datetime import timedelta
from uuid import uuid4

from counting import BROKER, TOPIC, WINDOWS, Count
from quixstreams import Application
from quixstreams.dataframe.windows import Count as CountOf
from quixstreams.dataframe.windows import Max, Mean, Min, Sum

AGGREGATES = {
    "count": CountOf(),
    "mean": Mean("amount"),
    "sum": Sum("amount"),
    "max": Max("amount"),
    "min": Min("amount"),
}

count = Count()
app = Application(
    broker_address=BROKER,
    consumer_group=uuid4().hex,
    auto_offset_reset="earliest",
    use_changelog_topics=False,
    state_dir=tempfile.mkdtemp(),
    loglevel="WARNING",
)
topic = app.topic(TOPIC, value_deserializer="json", timestamp_extractor=lambda v, *_: v["time"])
stream = app.dataframe(topic).update(lambda _: count.one())
for name, minutes in WINDOWS.items():
    size = timedelta(minutes=minutes)
    if sys.argv[1] == "hopping":
        window = stream.hopping_window(size, size / 60, name=name, grace_ms=300_000)
    else:
        window = stream.tumbling_window(size, name=name, grace_ms=300_000)
    window.agg(value=AGGREGATES[name]).current()
app.run()
