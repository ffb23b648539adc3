"""The state folder of one stack: where each thing lives."""

import os
from dataclasses import dataclass
from pathlib import Path

PRIVATE = 0o600


@dataclass(frozen=True)
class Home:
    """``.homeostat/`` of the current directory, or ``HOMEOSTAT_HOME``."""

    root: Path

    @classmethod
    def find(cls) -> "Home":
        return cls(Path(os.environ.get("HOMEOSTAT_HOME", ".homeostat")).resolve())

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def state(self) -> Path:
        return self.root / "stack.json"

    @property
    def lock(self) -> Path:
        return self.root / "supervisor.lock"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def offline(self) -> Path:
        return self.root / "offline"

    @property
    def traces(self) -> Path:
        return self.root / "traces"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def server(self, name: str) -> Path:
        """The data folder of an embedded server."""
        return self.root / name

    def service_state(self, name: str) -> Path:
        """Where a service keeps its local snapshots."""
        return self.root / "state" / name


def user_cache() -> Path:
    """What all stacks of this user share: jars, class archives, compiled kernels."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "homeostat"


def write_private(path: Path, text: str) -> None:
    """Replace ``path`` at once, readable by its owner only: a reader sees the old or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    draft.replace(path)
