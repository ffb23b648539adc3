"""``stack.json``: what the supervisor last knew; readers check it against the real processes."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from homeostat.cli.stack.home import Home, write_private
from homeostat.cli.stack.processes import ProcessId


class Phase(StrEnum):
    """The life of one program, in order; ``crashed`` is the pause before the next start."""

    WAITING = "waiting"
    PREPARING = "preparing"
    STARTING = "starting"
    LIVE = "live"
    READY = "ready"
    CRASHED = "crashed"
    STOPPED = "stopped"

    @property
    def is_up(self) -> bool:
        return self in {Phase.LIVE, Phase.READY}


@dataclass
class ProcessState:
    """One program as its keeper sees it; times are epoch seconds."""

    name: str
    ports: Mapping[str, int]
    phase: Phase = Phase.WAITING
    process: ProcessId | None = None
    since: float = 0.0
    restarts: int = 0
    reason: str = ""

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.is_running


@dataclass
class StackState:
    """The whole stack. ``env`` leads clients to its servers and holds its secrets."""

    supervisor: ProcessId
    env: dict[str, str]
    processes: list[ProcessState] = field(default_factory=list)

    @classmethod
    def read(cls, home: Home) -> "StackState | None":
        """The last state written, true or not any more; None when there never was a stack."""
        try:
            stored = json.loads(home.state.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return cls(
            ProcessId(**stored["supervisor"]),
            stored["env"],
            [_process_state(entry) for entry in stored["processes"]],
        )

    def write(self, home: Home) -> None:
        write_private(home.state, json.dumps(asdict(self), indent=2))

    @property
    def is_supervised(self) -> bool:
        return self.supervisor.is_running

    @property
    def recorded(self) -> list[ProcessId]:
        return [entry.process for entry in self.processes if entry.process is not None]

    def of(self, name: str) -> ProcessState | None:
        return next((entry for entry in self.processes if entry.name == name), None)


def _process_state(stored: dict[str, object]) -> ProcessState:
    process = stored.pop("process")
    entry = ProcessState(**stored)  # type: ignore[arg-type]  # our own file, written by asdict
    entry.phase = Phase(entry.phase)
    entry.process = ProcessId(**process) if isinstance(process, dict) else None
    return entry
