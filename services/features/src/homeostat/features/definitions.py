"""Which definitions of a pipeline's features are needed, and which of them answers reads.

A changed pipeline file is a new definition, which begins at the beginning of the log. Until it has
caught up, the one before it answers; and what the rollout's models were trained on goes on for as
long as they serve.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from homeostat.common.feature_store.definitions import Definition


@dataclass
class PipelineDefinitions:
    """What is known of one pipeline: its ``newest`` snapshot, and the definitions by hash.

    ``newest`` is ``None`` before it was told, and when the pipeline is gone.
    """

    newest: Definition | None = None
    known: dict[str, Definition] = field(default_factory=dict)

    @property
    def filling(self) -> Definition | None:
        """The newest, if it has not caught up; the first one has nothing to catch up on."""
        if self.newest is None:
            return None
        found = self.known.get(self.newest.view.definition_hash)
        is_live = not self._live if found is None else found.is_live
        return None if is_live else self.newest

    @property
    def serving(self) -> Definition | None:
        """The one that answers reads."""
        if self.filling is None or not self._live:
            return self.newest
        return max(self._live, key=lambda definition: definition.snapshot.generation)

    def needed(self, pinned: Iterable[str]) -> Mapping[str, Definition]:
        """By hash: the newest, the serving one, and those of ``pinned`` that are known."""
        if self.newest is None:
            return {}
        needed = {digest: self.known[digest] for digest in pinned if digest in self.known}
        for definition in (self.serving, self.newest):
            if definition is not None:
                needed[definition.view.definition_hash] = definition
        return needed

    @property
    def _live(self) -> list[Definition]:
        return [definition for definition in self.known.values() if definition.is_live]
