"""The offline store, as Delta tables in a folder of the simulation: training reads real ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltalake import DeltaTable, write_deltalake

from homeostat.common import topics
from homeostat.common.feature_store.offline import OUTCOMES, VECTORS, table_path
from homeostat.features.offline import rows
from homeostat.sim.log import Record
from homeostat.sim.process import Process, World

_SHAPES = {VECTORS: rows.vectors, OUTCOMES: rows.outcomes}


class OfflineStore(Process):
    """Gathers vectors and outcomes, and writes them when somebody asks for a version."""

    def __init__(self, world: World, root: Path) -> None:
        name = world.pipeline.name
        self._pending: dict[str, list[Record]] = {table: [] for table in _SHAPES}
        super().__init__(
            world,
            {
                topics.FEATURES.of(name): self._pending[VECTORS].extend,
                topics.OUTCOMES.of(name): self._pending[OUTCOMES].extend,
            },
        )
        self.root = root

    def commit(self) -> dict[str, int]:
        """Table versions that hold everything sent before this call."""
        while self.is_behind:
            self.turn()
        return {table: self._write(table, pending) for table, pending in self._pending.items()}

    def _write(self, table: str, pending: list[Record]) -> int:
        path = table_path(self.root, self.world.pipeline.name, table)
        if pending:
            _append(path, table, pending)
            pending.clear()
        return int(DeltaTable(path).version()) if path.exists() else -1


def _append(path: Path, table: str, records: Sequence[Record]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    write_deltalake(path, _SHAPES[table](records).rows, mode="append", schema_mode="merge")
