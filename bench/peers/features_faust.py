"""Faust's own tables: one hopping table a window, in memory, with a changelog as it always has."""

import tempfile
from datetime import timedelta
from uuid import uuid4

import faust
from counting import BROKER, TOPIC, WINDOWS, Count

app = faust.App(
    uuid4().hex,
    broker=f"kafka://{BROKER}",
    store="memory://",
    web_enabled=False,
    datadir=tempfile.mkdtemp(),
    topic_partitions=1,
)
FOLDS = {
    "count": (int, lambda total, _: total + 1),
    "mean": (lambda: [0.0, 0], lambda total, amount: [total[0] + amount, total[1] + 1]),
    "sum": (float, lambda total, amount: total + amount),
    "max": (lambda: float("-inf"), max),
    "min": (lambda: float("inf"), min),
}


class Payment(faust.Record, serializer="json"):
    id: str
    time: int
    customer: str
    amount: float


tables = {}
for name, minutes in WINDOWS.items():
    size = timedelta(minutes=minutes)
    table = app.Table(f"{name}-{uuid4().hex}", default=FOLDS[name][0], partitions=1)
    tables[name] = table.hopping(size, size / 60, expires=size).relative_to_stream()

count = Count()


@app.agent(app.topic(TOPIC, value_type=Payment))
async def fold(stream):
    async for event in stream:
        for name, table in tables.items():
            value = table[event.customer].value()
            table[event.customer] = FOLDS[name][1](value, event.amount)
        count.one()


if __name__ == "__main__":
    app.main()
