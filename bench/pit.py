"""What was known of a key at each label's time: our point-in-time join beside DuckDB's ASOF.

``make bench-pit`` writes histories of random rows as Parquet, then both join the same labels with
them in turn, each in a process of its own with both cores, kernels and libraries loaded before the
clock starts. Printed are seconds, peak memory and how often ours is faster.

The answers differ on purpose: ASOF knows one time, so it takes the row that became available last;
ours takes, of all that were available, the one whose event is newest. Without late rows the two
agree, and that is checked first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from homeostat.common.feature_store.point_in_time import History, known_rows

OURS, DUCKDB = "Homeostat", "DuckDB ASOF"
FILE_ROWS = 1_000_000
YEAR_MS = 365 * 86_400_000
LATE_MS = 3_600_000  # a twentieth of the rows comes up to so late
CHECKED = 20_000


@dataclass(frozen=True)
class Size:
    labels: int
    rows: int
    features: int

    def __str__(self) -> str:
        return f"{self.labels:,} labels, {self.rows:,} rows x {self.features}"


FULL = (Size(1_000_000, 10_000_000, 50), Size(1_000_000, 100_000_000, 5))
QUICK = (Size(100_000, 1_000_000, 50), Size(100_000, 5_000_000, 5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tenth of the size and less")
    parser.add_argument("--run", choices=(OURS, DUCKDB), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run is not None:
        print(json.dumps(run(arguments.run, arguments.folder)))
        return
    print(f"{'':42}{'seconds':>21}{'peak GiB':>18}{'faster':>9}")
    print(f"{'':42}{OURS:>9}{DUCKDB:>12}{OURS:>10}{'DuckDB':>8}")
    for size in QUICK if arguments.quick else FULL:
        with tempfile.TemporaryDirectory() as folder:
            check_agreement(Path(folder) / "check")
            write(Path(folder), size, late_share=0.05)
            report(size, measured(Path(folder), arguments.rounds))


def write(folder: Path, size: Size, *, late_share: float) -> None:
    """A year of rows, file by file in order of time, and labels of the same keys."""
    chance = np.random.default_rng(size.rows)
    keys = pa.array([f"c{number}" for number in range(size.labels // 4)])
    rows = folder / "rows"
    rows.mkdir(parents=True)
    files = -(-size.rows // FILE_ROWS)
    for number in range(files):
        count = min(FILE_ROWS, size.rows - number * FILE_ROWS)
        span = YEAR_MS // files
        event_time = np.sort(chance.integers(number * span, (number + 1) * span, count))
        delay = np.where(chance.random(count) < late_share, chance.integers(1, LATE_MS, count), 0)
        columns = {
            "key": keys.take(pa.array(chance.integers(0, len(keys), count))),
            "event_time": event_time,
            "available_at": event_time + delay,
            "offset": np.arange(count) + number * FILE_ROWS,
        }
        for feature in range(size.features):
            columns[f"f{feature}"] = chance.integers(0, 100_000, count) / 100
        pq.write_table(pa.table(columns), rows / f"{number:05}.parquet", compression="zstd")
    labels = {
        "key": keys.take(pa.array(chance.integers(0, len(keys), size.labels))),
        "at": chance.integers(0, YEAR_MS, size.labels),
    }
    pq.write_table(pa.table(labels), folder / "labels.parquet")


def check_agreement(folder: Path) -> None:
    """Both give the same values where no row comes late."""
    write(folder, Size(CHECKED, CHECKED * 10, 3), late_share=0.0)
    ours, theirs = known(folder), asof(folder)
    if not np.array_equal(ours, theirs, equal_nan=True):
        raise RuntimeError("the two joins disagree")


def run(name: str, folder: Path) -> dict[str, float]:
    """One join in this process: its seconds, and the peak of memory in GiB."""
    warm_up()
    start = time.perf_counter()
    values = known(folder) if name == OURS else asof(folder)
    seconds = time.perf_counter() - start
    share = float(np.isfinite(values[:, 0]).mean())
    return {"seconds": seconds, "peak": peak_gib(), "known": share}


def warm_up() -> None:
    """Load what both are made of."""
    row = pa.table(
        {"key": ["a"], "event_time": [1], "available_at": [1], "offset": [1], "f0": [1.0]}
    )
    known_rows(history_of(ds.dataset(row)), pa.array(["a"]), np.array([1], np.int64))
    duckdb.connect().close()


def known(folder: Path) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    labels = pq.read_table(folder / "labels.parquet")
    history = history_of(ds.dataset(folder / "rows"))
    keys = labels.column("key").combine_chunks()
    return known_rows(history, keys, labels.column("at").to_numpy()).values


def history_of(rows: ds.Dataset) -> History:
    features = [name for name in rows.schema.names if name.startswith("f")]
    return History(rows, key="key", features=features, ties=("offset",))


def asof(folder: Path) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    with duckdb.connect() as connection:
        connection.execute(f"CREATE VIEW history AS FROM read_parquet('{folder}/rows/*.parquet')")
        labels = f"'{folder}/labels.parquet', file_row_number = true"
        connection.execute(f"CREATE VIEW labels AS FROM read_parquet({labels})")
        found = connection.sql(
            'SELECT h.* EXCLUDE (key, event_time, available_at, "offset")'
            " FROM labels l ASOF LEFT JOIN history h"
            " ON l.key = h.key AND l.at >= h.available_at ORDER BY l.file_row_number"
        ).fetchnumpy()
    return np.stack([np.ma.filled(column, np.nan) for column in found.values()], axis=1)


def peak_gib() -> float:
    """Of this program alone: what ``getrusage`` says begins with the size of its parent."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


Results = dict[str, list[dict[str, float]]]


def measured(folder: Path, rounds: int) -> Results:
    results: Results = {OURS: [], DUCKDB: []}
    for number in range(rounds):
        for name in (OURS, DUCKDB) if number % 2 == 0 else (DUCKDB, OURS):
            command = [sys.executable, "-m", "bench.pit", "--run", name, "--folder", str(folder)]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results[name].append(json.loads(answer))
    return results


def report(size: Size, results: Results) -> None:
    seconds = {name: [each["seconds"] for each in runs] for name, runs in results.items()}
    peak = {name: max(each["peak"] for each in runs) for name, runs in results.items()}
    faster = median(slow / fast for slow, fast in zip(seconds[DUCKDB], seconds[OURS], strict=True))
    print(
        f"{size!s:42}{median(seconds[OURS]):9.1f}{median(seconds[DUCKDB]):12.1f}"
        f"{peak[OURS]:10.2f}{peak[DUCKDB]:8.2f}{faster:9.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
