"""Compile the kernels once: ``python -m homeostat.common.windows.warm_up``, about half a minute.

`make setup` does it, so that on a fresh machine no four processes compile the same kernels side by
side while somebody waits for the first answer.
"""

from homeostat.common.windows.fold import EntityFold
from homeostat.common.windows.spec import AggregateFeature, parse_aggregate, parse_window


def warm_up(fold: EntityFold | None = None) -> None:
    """Load every kernel of a fold, or compile it; by default those that all folds share."""
    fold = fold or EntityFold(
        "key",
        [AggregateFeature("rate", parse_aggregate("mean(label)"), parse_window("sliding 1h"))],
    )
    fields = {name: [0.0] for name in fold.fields}
    event = fold.events([0], [1], fields)
    state = fold.new_state()
    rows = state.intern(["key"])
    fold.fold_events(state, rows, event)
    if fold.uses_labels:
        fold.fold_labels(state, rows, fold.labels([0], [1], [0.0]))
    packed = fold.pack(state, rows)
    fold.unpack(state, rows, packed)
    fold.read(packed, [0], event)


if __name__ == "__main__":
    warm_up()
