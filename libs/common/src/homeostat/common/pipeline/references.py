"""Cross-references of a pipeline: does everything that is named exist, and does it fit?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from homeostat.common.errors import did_you_mean
from homeostat.common.expressions import (
    ExpressionError,
    Name,
    NameKind,
    compile_expression,
)
from homeostat.common.pipeline.spec import AggregateSpec, FieldType, Pii, Pipeline
from homeostat.common.pipeline.yaml_tree import KeyPath
from homeostat.common.windows import (
    LABEL,
    TAKES_TEXT,
    Aggregate,
    AggregateFeature,
    parse_aggregate,
    parse_window,
)

RESERVED = (
    "label",
    "event_time",
)  # names that expressions and aggregates give a meaning of their own


@dataclass(frozen=True)
class Problem:
    path: KeyPath
    message: str
    fix: str | None = None


def problems(pipeline: Pipeline) -> list[Problem]:
    """All cross-reference problems of a pipeline, in the order of the file."""
    return [
        *_source(pipeline),
        *_fields(pipeline),
        *_aggregates(pipeline),
        *_expressions(pipeline),
        *_rollout(pipeline),
        *_slices(pipeline),
    ]


def _field_exists(pipeline: Pipeline, name: str, path: KeyPath) -> Iterator[Problem]:
    if name not in pipeline.fields:
        yield Problem(path, f"there is no field {name!r}", did_you_mean(name, pipeline.fields))
    elif pipeline.fields[name].pii is Pii.DROP:
        yield Problem(path, f"the field {name!r} is dropped at the edge", "use pii: hash")


def _source(pipeline: Pipeline) -> Iterator[Problem]:
    source = pipeline.source
    for role, name in (("id", source.id), ("key", source.key)):
        if name == "row":
            continue
        yield from _field_exists(pipeline, name, ("source", role))
        if name in pipeline.fields and pipeline.fields[name].optional:
            yield Problem(
                ("source", role),
                f"the {role} field {name!r} cannot be optional",
                "take optional: true from the field",
            )
    yield from _is_text(pipeline, source.key, ("source", "key"))
    yield from _field_exists(pipeline, pipeline.unit, ("unit",))
    yield from _is_text(pipeline, pipeline.unit, ("unit",))
    if source.time in pipeline.fields:
        yield Problem(
            ("source", "time"),
            f"{source.time!r} is the event time, not a field",
            "take it from fields; expressions call it event_time",
        )
    for outcome in filter(None, (source.label.field, source.label.time)):
        if outcome in pipeline.fields:
            message = f"{outcome!r} belongs to the label, not to the event"
            yield Problem(("fields", outcome), message, "take it from fields")


def _fields(pipeline: Pipeline) -> Iterator[Problem]:
    for name, spec in pipeline.fields.items():
        if name in RESERVED:
            yield Problem(("fields", name), f"the name {name!r} is reserved", "choose another")
        if name in pipeline.features:
            yield Problem(("features", name), f"{name!r} is already a field", "choose another")
        if spec.pii is not None and spec.type is not FieldType.STRING:
            yield Problem(
                ("fields", name, "pii"),
                "only a string can be dropped or hashed",
                "make it type: string, or take pii from it",
            )


def _aggregates(pipeline: Pipeline) -> Iterator[Problem]:
    for name, spec in pipeline.aggregates.items():
        path: KeyPath = ("features", name)
        yield from _field_exists(pipeline, spec.entity, (*path, "entity"))
        yield from _is_text(pipeline, spec.entity, (*path, "entity"))
        try:
            aggregate = parse_aggregate(spec.aggregate)
        except ValueError as error:
            yield Problem((*path, "aggregate"), str(error))
            continue
        yield from _window(name, spec, aggregate)
        for field in aggregate.fields:
            if field != LABEL:
                yield from _field_exists(pipeline, field, (*path, "aggregate"))
                if aggregate.function not in TAKES_TEXT:
                    yield from _is_number(pipeline, field, (*path, "aggregate"))


def _window(name: str, spec: AggregateSpec, aggregate: Aggregate) -> Iterator[Problem]:
    try:
        AggregateFeature(name, aggregate, parse_window(spec.window), spec.delay)
    except ValueError as error:
        yield Problem(("features", name, "window"), str(error))


def _is_number(pipeline: Pipeline, name: str, path: KeyPath) -> Iterator[Problem]:
    if name in pipeline.fields and not pipeline.fields[name].type.is_numeric:
        fix = " or ".join(f"{function}({name})" for function in TAKES_TEXT)
        yield Problem(
            path, f"{name!r} is a {pipeline.fields[name].type}, not a number", f"write {fix}"
        )


def _is_text(pipeline: Pipeline, name: str, path: KeyPath) -> Iterator[Problem]:
    """Keys are texts: on topics, in the store and in requests."""
    if name in pipeline.fields and pipeline.fields[name].type is not FieldType.STRING:
        yield Problem(
            path,
            f"{name!r} is a {pipeline.fields[name].type}, but a key is a string",
            f"write {name}: string under fields",
        )


def expression_names(pipeline: Pipeline) -> dict[str, Name]:
    """What an expression may name: event fields, the event time, and every feature."""
    names = {"event_time": Name(NameKind.TIME)}
    for field, spec in pipeline.fields.items():
        if spec.type is FieldType.CATEGORY:
            names[field] = Name(NameKind.CATEGORY, spec.values or ())
        elif spec.type.is_numeric:
            names[field] = Name(NameKind.NUMBER)
    return names | dict.fromkeys(pipeline.features, Name(NameKind.NUMBER))


def _expressions(pipeline: Pipeline) -> Iterator[Problem]:
    names = expression_names(pipeline)
    defined = {*names} - {*pipeline.expressions}
    for name, spec in pipeline.expressions.items():
        path: KeyPath = ("features", name, "expression")
        try:
            expression = compile_expression(spec.expression, names)
        except ExpressionError as error:
            is_time = f"{pipeline.source.time!r}" in str(error)
            fix = "the event time is called event_time" if is_time else None
            yield Problem(path, str(error), fix)
            continue
        later = [other for other in expression.names if other not in defined]
        if later:
            message = f"{later[0]!r} is defined further down, or by itself"
            yield Problem(path, message, f"define {later[0]} above {name}")
        defined.add(name)


def _rollout(pipeline: Pipeline) -> Iterator[Problem]:
    rollout = pipeline.rollout
    if rollout.experiment and rollout.experiment.share > rollout.steps[-1] - rollout.holdback:
        yield Problem(
            ("rollout", "experiment", "share"),
            "the experiment leaves no control",
            f"at most {rollout.steps[-1] - rollout.holdback:.0%}",
        )


def _slices(pipeline: Pipeline) -> Iterator[Problem]:
    for name in pipeline.policy.slices:
        if name not in pipeline.features:
            yield Problem(
                ("governance",),
                f"the policy slices by {name!r}, which is no feature",
                did_you_mean(name, pipeline.features),
            )
