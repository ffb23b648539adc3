"""The training set of a run: which rows take part, and whether they can teach anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from homeostat.common.errors import InvalidInput
from homeostat.common.feature_store import offline
from homeostat.common.feature_store.offline import TrainingSet
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import Pipeline
from homeostat.common.pipeline.spec import TrainingSpec
from homeostat.trainer.evaluation import metric_value

FLOAT32_MAX = float(np.finfo(np.float32).max)
LEAK_AUC = 0.9999  # one column that ranks the label this well was made from it


class Refused(InvalidInput):
    """A run that can come to no model, for a reason that people can act on."""

    code = "TRAINING_REFUSED"


@dataclass(frozen=True)
class Examples:
    """Labelled rows in order of time; ``dropped`` counts those with values no model may see."""

    features: tuple[str, ...]
    definition_hash: str
    times: NDArray[np.int64]
    values: NDArray[np.float64]
    labels: NDArray[np.float64]
    digest: str
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def positives(self) -> int:
        return int(self.labels.sum())

    def take(self, rows: slice | NDArray[np.bool_] | NDArray[np.intp]) -> Examples:
        return replace(
            self, times=self.times[rows], values=self.values[rows], labels=self.labels[rows]
        )


def load(root: Path, pipeline: Pipeline, versions: dict[str, int], *, as_of: int) -> Examples:
    """The labelled rows that were mature ``as_of`` (epoch ms of pipeline time), as far back as
    training looks.

    Raises:
        Refused: the store has no such table.
    """
    view = FeatureView(pipeline)
    needed = (offline.VECTORS, offline.OUTCOMES)
    missing = [name for name in needed if versions.get(name, -1) < 0]
    if missing:
        raise Refused(f"the offline store has no {' and no '.join(missing)} yet")
    maturity = pipeline.source.label.maturity // timedelta(milliseconds=1)
    reach = reach_millis(pipeline.training)
    found = offline.training_set(
        root,
        pipeline=pipeline.name,
        definition_hash=view.definition_hash,
        features=view.feature_names,
        versions={name: versions[name] for name in needed},
        as_of=as_of,
        maturity=maturity,
        absent=pipeline.source.label.absent,
        since=0 if reach is None else as_of - maturity - reach,
    )
    return _usable(found, view.definition_hash)


def reach_millis(training: TrainingSpec) -> int | None:
    """How far back from the newest mature row a run looks; ``None``: to the first.

    The longest history, before a holdout that is a share of what is read: were it a share of all
    that was ever stored, it would grow until a challenger is judged on a world that is gone.

    >>> reach_millis(TrainingSpec(history=("8d", "4d"), holdout="20%")) // 86_400_000
    10
    """
    lengths = [length for length in training.history if length is not None]
    if len(lengths) < len(training.history):
        return None
    return round(max(lengths) / timedelta(milliseconds=1) / (1 - training.holdout))


def _usable(found: TrainingSet, definition_hash: str) -> Examples:
    """Without infinities: XGBoost's single precision makes them of large numbers too."""
    labels = (found.labels > 0.5).astype(np.float64)
    everything = Examples(
        found.features, definition_hash, found.times, found.values, labels, found.digest
    )
    is_usable: NDArray[np.bool_] = np.all(~(np.abs(found.values) > FLOAT32_MAX), axis=1)
    if is_usable.all():
        return everything
    return replace(everything.take(is_usable), dropped=int((~is_usable).sum()))


def check(examples: Examples, training: TrainingSpec) -> None:
    """Say no to rows that can teach nothing, or that tell the answer.

    Raises:
        Refused: empty, too few, one class, all null, or a column that gives the label away.
    """
    count, positives = len(examples), examples.positives
    if count == 0:
        raise Refused("there are no mature labelled rows yet", fix="wait until labels have ripened")
    if count < training.min_rows:
        raise Refused(f"{count} mature rows, training.min_rows is {training.min_rows}")
    if positives in (0, count):
        raise Refused(f"all {count} mature rows have the label {int(positives > 0)}")
    rarer = min(positives, count - positives)
    if rarer < training.min_positives:
        raise Refused(
            f"{rarer} mature rows of the rarer class, "
            f"training.min_positives is {training.min_positives}"
        )
    if np.isnan(examples.values).all():
        raise Refused("every feature of every row is null", fix="look at the feature definitions")
    if leaks := list(_leaks(examples)):
        raise Refused(
            f"{', '.join(leaks)} alone tells the label",
            fix="take out the feature that is made from it",
        )


def _leaks(examples: Examples) -> Sequence[str]:
    found = []
    for index, name in enumerate(examples.features):
        column = examples.values[:, index]
        known = ~np.isnan(column)
        labels = examples.labels[known]
        if known.mean() < 0.5 or labels.min() == labels.max():
            continue
        area = metric_value("roc_auc", labels, column[known])
        if max(area, 1 - area) >= LEAK_AUC:
            found.append(name)
    return found


def missing_share(examples: Examples) -> tuple[str, float]:
    """The feature that is null most often, and how often."""
    shares = np.isnan(examples.values).mean(axis=0)
    worst = int(np.argmax(shares))
    return examples.features[worst], float(shares[worst])
