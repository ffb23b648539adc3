"""Reading the log files of the processes, to their end or beyond it."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

POLL_SECONDS = 0.2


@dataclass
class Log:
    """One process' log; remembers how far it was read."""

    name: str
    path: Path
    _position: int = field(default=0, repr=False)

    def last(self, count: int) -> list[str]:
        """The last ``count`` lines, then positioned at the end."""
        with self.path.open("rb") as file:
            kept = deque(file, maxlen=count)
            self._position = file.tell()
        return [_decode(line) for line in kept]

    def fresh(self) -> list[str]:
        """Whole lines written since the last read; a file that became shorter was begun anew."""
        if not self.path.exists():
            return []
        if self.path.stat().st_size < self._position:
            self._position = 0
        with self.path.open("rb") as file:
            file.seek(self._position)
            whole, _, _ = file.read().rpartition(b"\n")
        self._position += len(whole) + 1 if whole else 0
        return [_decode(line) for line in whole.split(b"\n")] if whole else []


def follow_all(logs: list[Log]) -> Iterator[tuple[str, str]]:
    """Name and line, as they come, until interrupted."""
    while True:
        for log in logs:
            for line in log.fresh():
                yield log.name, line
        time.sleep(POLL_SECONDS)


def _decode(line: bytes) -> str:
    return line.rstrip(b"\r\n").decode(errors="replace")
