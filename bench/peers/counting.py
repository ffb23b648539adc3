"""Counts what a peer takes in, and ends the process after the last event with one line of JSON."""

import json
import os
import resource
import time

BROKER = os.environ["BENCH_BROKER"]
TOPIC = os.environ["BENCH_TOPIC"]
EVENTS = int(os.environ["BENCH_EVENTS"])
# Windows in minutes, each with sixty panes: what is read off a window is at most size/60 old.
WINDOWS = {"count": 60, "mean": 60, "sum": 360, "max": 1440, "min": 1440}


class Count:
    """Wall and CPU time from the first event to the last."""

    def __init__(self) -> None:
        self._seen = 0
        self._started = self._cpu = 0.0

    def one(self) -> None:
        if self._seen == 0:
            self._started, self._cpu = time.perf_counter(), _cpu_seconds()
        self._seen += 1
        if self._seen == EVENTS:
            self.end()

    def end(self) -> None:
        report = {
            "events": self._seen,
            "seconds": time.perf_counter() - self._started,
            "cpu_seconds": _cpu_seconds() - self._cpu,
        }
        os.write(1, json.dumps(report).encode())  # a peer may have redirected print
        os._exit(0)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
