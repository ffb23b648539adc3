"""Point-in-time reads of the offline store: what serving could have known, and nothing later.

Tables are Delta Lake folders, written by the features service alone. A training set is a set of
table versions plus the arguments of ``training_set``: the same versions give the same rows, told by
``digest``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from homeostat.common.errors import NotFound
from homeostat.common.feature_store.point_in_time import History, known_rows

VECTORS = "vectors"
OUTCOMES = "outcomes"
PREDICTIONS = "predictions"
EVENTS = "events"
LOG = "log"
TABLES = (EVENTS, LOG, VECTORS, OUTCOMES, PREDICTIONS)

F64 = np.ndarray[tuple[int], np.dtype[np.float64]]
I64 = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True)
class TrainingSet:
    """``n`` labelled vectors in event-time order; ``values[n, f]`` is what serving used."""

    features: tuple[str, ...]
    ids: Sequence[str]
    times: I64  # epoch ms
    values: np.ndarray[tuple[int, int], np.dtype[np.float64]]
    labels: F64
    digest: str
    versions: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.ids)


def table_path(root: Path, pipeline: str, table: str) -> Path:
    return root / pipeline / table


def training_set(
    root: Path,
    *,
    pipeline: str,
    definition_hash: str,
    features: Sequence[str],
    versions: Mapping[str, int],
    as_of: int,
    maturity: int,
    absent: Literal[0, "drop"],
    since: int = 0,
) -> TrainingSet:
    """Join vectors with the labels that were known ``as_of`` (epoch ms).

    Only events older than ``maturity`` (ms) take part, because labels ripen unevenly: the frauds
    that are found first are not like the others; events before ``since`` (epoch ms) are not read.
    Of corrected labels the newest known version counts; an event without one is a 0 or left out, as
    ``absent`` says. A vector emitted twice counts once.

    Raises:
        NotFound: the store has no such table, version or feature.
    """
    tables = {
        name: _open(root, pipeline, name, versions[name]).to_pyarrow_dataset()
        for name in (VECTORS, OUTCOMES)
    }
    _require_columns(tables[VECTORS], pipeline, features)
    with duckdb.connect(config={"threads": 1}) as connection:
        for name, dataset in tables.items():
            connection.register(name, dataset)
        parameters = [definition_hash, since, as_of - maturity, as_of, since, as_of]
        rows = connection.sql(_query(features, absent), params=parameters)
        result: pa.Table = rows.to_arrow_table()
    values = np.empty((result.num_rows, len(features)), np.float64)
    for index in range(len(features)):
        values[:, index] = result.column(f"f{index}").to_numpy()
    return TrainingSet(
        features=tuple(features),
        ids=result.column("id").to_pylist(),
        times=result.column("event_time").to_numpy(),
        values=values,
        labels=result.column("label").to_numpy().astype(np.float64),
        digest=_digest(result),
        versions=dict(versions),
    )


@dataclass(frozen=True)
class KnownFeatures:
    """What serving could have known of ``n`` keys, each at its own instant.

    ``values[n, f]`` is the model's encoding; NaN also where nothing was known, which
    ``event_times`` (epoch ms, ``KnownRows.NEVER``) tells apart.
    """

    features: tuple[str, ...]
    values: np.ndarray[tuple[int, int], np.dtype[np.float64]]
    event_times: I64
    digest: str  # of keys, instants and all of the above
    version: int


def features_known_at(
    root: Path,
    *,
    pipeline: str,
    definition_hash: str,
    entity: str,
    features: Sequence[str],
    version: int,
    keys: Sequence[str | None],
    at: I64,
    max_age: int | None = None,
) -> KnownFeatures:
    """Join instants of an entity's keys (epoch ms) with the newest vectors that were known then.

    For questions that no event asked: a customer scored every night, labels of another system. A
    vector counts once it has happened and was taken in, and while it is not older than ``max_age``
    (ms). Of vectors with one event time the one taken in last counts, then by source.

    Raises:
        NotFound: the store has no such table, version, entity or feature.
    """
    vectors = _open(root, pipeline, VECTORS, version).to_pyarrow_dataset()
    _require_columns(vectors, pipeline, features)
    key = f"entity:{entity}"
    if key not in vectors.schema.names:
        raise NotFound(
            f"{pipeline!r} has no vectors by {entity!r} in the offline store",
            fix=f"take one of {', '.join(_entities(vectors))}",
        )
    history = History(
        vectors,
        key=key,
        features=[f"value:{name}" for name in features],
        available_at="intake",
        ties=("source_partition", "offset"),
        where=ds.field("definition_hash") == definition_hash,
    )
    asked = pa.array(keys, pa.string())
    known = known_rows(history, asked, at, max_age=max_age)
    columns = {"key": asked, "at": at, "event_time": known.event_times}
    columns |= {name: known.values[:, index] for index, name in enumerate(features)}
    return KnownFeatures(
        tuple(features), known.values, known.event_times, _digest(pa.table(columns)), version
    )


def _entities(vectors: ds.Dataset) -> list[str]:
    names = vectors.schema.names
    return [name.removeprefix("entity:") for name in names if name.startswith("entity:")]


def _open(root: Path, pipeline: str, table: str, version: int) -> DeltaTable:
    try:
        return DeltaTable(table_path(root, pipeline, table), version=version)
    except TableNotFoundError as error:
        raise NotFound(
            f"the offline store has no {table} of {pipeline!r} yet",
            fix="send events, then ask the features service to commit",
        ) from error
    except DeltaError as error:
        raise NotFound(
            f"the offline store cannot read version {version} of {table} of {pipeline!r}: {error}",
            fix="take the versions that the features service answers to a commit",
        ) from error


def _require_columns(vectors: ds.Dataset, pipeline: str, features: Sequence[str]) -> None:
    missing = [name for name in features if f"value:{name}" not in vectors.schema.names]
    if missing:
        raise NotFound(
            f"no vector of {pipeline!r} in the offline store has {', '.join(missing)} yet",
            fix="the definition is new: let some events pass, or backfill",
        )


def _query(features: Sequence[str], absent: Literal[0, "drop"]) -> str:
    columns = ", ".join(f'v."value:{name}" AS f{index}' for index, name in enumerate(features))
    join = "LEFT JOIN" if absent == 0 else "JOIN"
    # Ties break by id, so that equal table versions give equal bytes.
    return f"""
        WITH once AS (
            SELECT * FROM vectors
            WHERE definition_hash = $1 AND event_time >= $2 AND event_time <= $3 AND intake <= $4
            QUALIFY row_number() OVER (PARTITION BY id ORDER BY intake, source_partition, "offset")
            = 1
        ), known AS (
            SELECT id, label FROM outcomes
            WHERE event_time >= $5 AND available_at <= $6
            QUALIFY row_number() OVER (
                PARTITION BY id ORDER BY version DESC, available_at, label
            ) = 1
        )
        SELECT v.id, v.event_time, coalesce(known.label, 0.0) AS label, {columns}
        FROM once v {join} known USING (id)
        ORDER BY v.event_time, v.id
    """  # noqa: S608 - feature names match FIELD_PATTERN, everything else is a parameter


def _digest(table: pa.Table) -> str:
    digest = hashlib.sha256()
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        digest.update(name.encode())
        if pa.types.is_string(column.type):
            digest.update("\0".join(text or "" for text in column.to_pylist()).encode())
        else:
            digest.update(np.ascontiguousarray(column.to_numpy(zero_copy_only=False)).tobytes())
    return digest.hexdigest()
