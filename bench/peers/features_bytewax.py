"""Bytewax: five sliding windows that fold a key's amounts; a value for each closed window."""

from datetime import UTC, datetime, timedelta

import bytewax.operators as op
import orjson
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.operators import windowing
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main
from counting import BROKER, TOPIC, WINDOWS, Count

START = datetime(2026, 1, 1, tzinfo=UTC)
FOLDS = {
    "count": (lambda: 0, lambda total, _: total + 1, lambda a, b: a + b),
    "sum": (lambda: 0.0, lambda total, amount: total + amount, lambda a, b: a + b),
    "mean": (
        lambda: (0.0, 0),
        lambda total, amount: (total[0] + amount, total[1] + 1),
        lambda a, b: (a[0] + b[0], a[1] + b[1]),
    ),
    "max": (lambda: float("-inf"), max, max),
    "min": (lambda: float("inf"), min, min),
}


class Nowhere(StatelessSinkPartition):
    def write_batch(self, items):
        pass


class Discard(DynamicSink):
    def build(self, *_):
        return Nowhere()


count = Count()


def decode(message):
    count.one()
    event = orjson.loads(message.value)
    return event["customer"], (event["time"], event["amount"])


flow = Dataflow("bench")
source = KafkaSource([BROKER], [TOPIC], tail=True, batch_size=1000)
events = op.map("decode", op.input("in", flow, source), decode)
clock = windowing.EventClock(
    lambda event: datetime.fromtimestamp(event[0] / 1000, UTC),
    wait_for_system_duration=timedelta(seconds=5),
)
for name, minutes in WINDOWS.items():
    start, fold, merge = FOLDS[name]
    windower = windowing.SlidingWindower(
        length=timedelta(minutes=minutes), offset=timedelta(minutes=minutes / 60), align_to=START
    )
    folded = windowing.fold_window(
        name, events, clock, windower, start, lambda acc, e, fold=fold: fold(acc, e[1]), merge
    )
    op.output(f"out {name}", folded.down, Discard())
run_main(flow)
