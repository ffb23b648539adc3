"""Publishing pipelines: one writer at a time, and never over a generation that was not read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from homeostat.common import kafka, topics
from homeostat.common.errors import InvalidInput
from homeostat.common.feature_store.definitions import Definition
from homeostat.common.feature_store.views import FeatureView
from homeostat.common.pipeline import Pipeline, Snapshot

T = TypeVar("T")

WRITER = "pipelines-writer"  # the transactional id that fences an older writer


class Change(StrEnum):
    NEW = "new"
    CHANGED = "changed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True)
class Plan:
    """What publishing a pipeline would do. ``bytes_per_entity`` bounds the state of one key."""

    pipeline: Pipeline
    current: Snapshot | None
    change: Change
    differences: list[str]
    is_new_definition: bool
    bytes_per_entity: Mapping[str, int]


def plan(pipeline: Pipeline, current: Snapshot | None) -> Plan:
    """Compare a pipeline with the generation that is published. Pure.

    Raises:
        InvalidInput: the source's key has changed.
    """
    if current is not None and (key := current.pipeline.source.key) != pipeline.source.key:
        raise InvalidInput(
            f"source.key changes from {key} to {pipeline.source.key}, but all that has come lies "
            f"where {key} says",
            fix="keep the key, or publish the pipeline under another name",
        )
    view = FeatureView(pipeline)
    bounds = {entity: fold.bytes_per_entity_bound for entity, fold in view.folds.items()}
    if current is None:
        return Plan(pipeline, None, Change.NEW, [], True, bounds)
    if Snapshot(pipeline, 0).content_hash == current.content_hash:
        return Plan(pipeline, current, Change.UNCHANGED, [], False, bounds)
    before = current.pipeline.model_dump(mode="json", by_alias=True)
    after = pipeline.model_dump(mode="json", by_alias=True)
    is_new_definition = FeatureView(current.pipeline).definition_hash != view.definition_hash
    return Plan(
        pipeline,
        current,
        Change.CHANGED,
        _differences(before, after),
        is_new_definition,
        bounds,
    )


async def published(bootstrap_servers: str) -> dict[str, Snapshot]:
    """The pipelines that are published now."""
    return await _values(topics.PIPELINES, Snapshot.decode, bootstrap_servers)


async def definitions(bootstrap_servers: str) -> dict[str, Definition]:
    """The definitions of features that are kept up to date, by key."""
    return await _values(topics.DEFINITIONS, Definition.decode, bootstrap_servers)


async def _values(
    topic: topics.Topic, decode: Callable[[bytes], T], bootstrap_servers: str
) -> dict[str, T]:
    await kafka.ensure_topics(bootstrap_servers, [(topic.of(), topic)])
    view = kafka.CompactedView(topic, decode, bootstrap_servers=bootstrap_servers, client_id="cli")
    await view.start()
    try:
        await view.caught_up()
        return dict(view.values)
    finally:
        await view.stop()


async def publish(pipeline: Pipeline, *, bootstrap_servers: str) -> tuple[Plan, Snapshot]:
    """Make the pipeline's topics and publish its snapshot, unless nothing has changed.

    The producer is started before the current generation is read: from then on an older writer is
    fenced, so that nobody publishes over a generation that this one has not seen.
    """
    writer = kafka.producer(bootstrap_servers, client_id="cli", transactional_id=WRITER)
    await writer.start()
    try:
        found = (await published(bootstrap_servers)).get(pipeline.name)
        kept = await definitions(bootstrap_servers)
        planned = plan(pipeline, found)
        declared = [(topic.of(), topic) for topic in topics.GLOBAL]
        await kafka.ensure_topics(bootstrap_servers, [*declared, *topics.of_pipeline(pipeline)])
        if found is not None and planned.change is Change.UNCHANGED:
            return planned, found
        snapshot = Snapshot(pipeline, found.generation + 1 if found else 1)
        definition = Definition(snapshot, is_live=False)
        before = kept.get(definition.key)
        is_live = found is None if before is None else before.is_live
        definition = Definition(snapshot, is_live)
        async with writer.transaction():
            await writer.send_and_wait(
                topics.DEFINITIONS.of(), definition.encode(), definition.key.encode()
            )
            await writer.send_and_wait(
                topics.PIPELINES.of(), snapshot.encode(), pipeline.name.encode()
            )
        return planned, snapshot
    finally:
        await writer.stop()


def _differences(before: object, after: object, path: str = "") -> list[str]:
    """``path: before → after`` of every leaf that differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = dict.fromkeys([*before, *after])
        return [
            line
            for name in names
            for line in _differences(before.get(name), after.get(name), f"{path}.{name}".strip("."))
        ]
    return [] if before == after else [f"{path}: {before} → {after}"]
