"""Loading a pipeline file: all of its problems at once, each with file, line, key path and fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from homeostat.common.errors import PipelineFileError, Violation, did_you_mean
from homeostat.common.pipeline import references, yaml_tree
from homeostat.common.pipeline.spec import Pipeline
from homeostat.common.pipeline.yaml_tree import KeyPath, YamlTree
from homeostat.common.policy import Policy

M = TypeVar("M", bound=BaseModel)


def load(path: Path) -> Pipeline:
    """Read, validate and cross-check a pipeline file, its governance file inlined as ``policy``.

    Raises:
        PipelineFileError: with one violation per problem, ``file:line key.path``.
    """
    tree = _read(path)
    violations = _inline_policy(tree, path.parent)
    try:
        pipeline = _validate(Pipeline, tree)
    except PipelineFileError as error:
        raise _refused(tree, [*error.violations, *violations]) from error
    violations += [
        Violation(tree.place(problem.path), problem.message, problem.fix)
        for problem in references.problems(pipeline)
    ]
    if violations:
        raise _refused(tree, violations)
    return pipeline


def _inline_policy(tree: YamlTree, folder: Path) -> list[Violation]:
    """Put the governance file's policy into the tree; what is wrong with it, in its own lines."""
    if not isinstance(tree.root, dict):
        return []
    if "policy" in tree.root:
        place = tree.place(("policy",))
        del tree.root["policy"]
        fix = "write governance: policy.yaml"
        return [Violation(place, "the policy has a file of its own", fix)]
    governance = tree.root.get("governance")
    if not isinstance(governance, str):
        return []
    try:
        policy = load_policy(folder / governance)
    except PipelineFileError as error:
        return list(error.violations) or [Violation(tree.place(("governance",)), error.detail)]
    tree.root["policy"] = policy.model_dump(mode="json", by_alias=True)
    return []


def load_policy(path: Path) -> Policy:
    """Read and validate a policy file."""
    return _validate(Policy, _read(path))


def _read(path: Path) -> YamlTree:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise PipelineFileError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineFileError(f"{path} cannot be read: {error}") from error
    return yaml_tree.parse(text, name=str(path))


def _validate(model: type[M], tree: YamlTree) -> M:
    try:
        return model.model_validate(tree.root)
    except ValidationError as error:
        violations = [_violation(model, tree, detail) for detail in error.errors()]
        raise _refused(tree, violations) from error


def _refused(tree: YamlTree, violations: list[Violation]) -> PipelineFileError:
    count = f"{len(violations)} problem" + ("s" if len(violations) > 1 else "")
    return PipelineFileError(f"{tree.name} has {count}", violations=violations)


def _violation(model: type[BaseModel], tree: YamlTree, detail: ErrorDetails) -> Violation:
    path = _present(tree.root, detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    fix = None
    if detail["type"] == "extra_forbidden":
        message = f"unknown key {path[-1]!r}"
        fix = did_you_mean(str(path[-1]), _siblings(model, detail["loc"]))
    elif detail["type"] == "missing":
        message = f"the key {path[-1]!r} is missing"
    return Violation(tree.place(path), message, fix)


def _present(root: Any, location: tuple[int | str, ...]) -> KeyPath:
    """The location without the names of union members, which the file does not contain."""
    path: list[int | str] = []
    here = root
    for index, part in enumerate(location):
        inside = (isinstance(here, dict) and part in here) or (
            isinstance(here, list) and isinstance(part, int) and part < len(here)
        )
        if inside:
            here = here[part]
            path.append(part)
        elif index == len(location) - 1 and isinstance(here, dict):
            path.append(part)  # a missing key
    return tuple(path)


def _siblings(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that are known where an unknown one stands, read from the JSON Schema."""
    schema = model.model_json_schema(by_alias=True)
    definitions = schema.get("$defs", {})
    here = [schema]
    for part in location[:-1]:
        here = [
            child
            for node in here
            for child in _children(_resolve(node, definitions), part, definitions)
        ] or here
    return sorted(
        {key for node in here for key in _resolve(node, definitions).get("properties", {})}
    )


def _resolve(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    reference = node.get("$ref", "")
    return definitions.get(reference.rpartition("/")[2], node) if reference else node


def _children(
    node: dict[str, Any], part: int | str, definitions: dict[str, Any]
) -> list[dict[str, Any]]:
    if part in node.get("properties", {}):
        child = node["properties"][part]
    elif isinstance(part, int) and "items" in node:
        child = node["items"]
    elif node.get("patternProperties"):  # a mapping whose keys have a form
        child = next(iter(node["patternProperties"].values()))
    else:
        return []
    child = _resolve(child, definitions)
    members: list[dict[str, Any]] = child.get("oneOf") or child.get("anyOf") or [child]
    return members
