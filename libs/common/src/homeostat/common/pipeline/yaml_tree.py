"""Strict YAML: plain values with the line of every key, and nothing that surprises.

Duplicate keys, anchors, aliases and tags are refused, and only ``true`` and ``false`` are booleans
(YAML 1.1 would read a country code ``no`` as one).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from homeostat.common.errors import PipelineFileError, Violation

KeyPath = tuple[str | int, ...]
MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_DIGITS = 300  # of an integer: beyond, it is text, and no key takes it for a number
_INTEGER = re.compile(r"[-+]?[0-9]+")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


@dataclass
class YamlTree:
    """A parsed file: its values, and the line (1-based) on which each key path starts."""

    name: str
    root: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """``file:line key.path`` of the nearest known ancestor of ``path``."""
        known = path
        while known and known not in self.lines:
            known = known[:-1]
        dotted = ".".join(map(str, path))
        return f"{self.name}:{self.lines.get(known, 1)}" + (f" {dotted}" if dotted else "")


def parse(text: str, *, name: str) -> YamlTree:
    """Read one document; every problem is a ``PipelineFileError`` with its line."""
    if len(text.encode()) > MAX_BYTES:
        raise PipelineFileError(f"{name} is larger than {MAX_BYTES} bytes")
    tree = YamlTree(name)
    try:
        _refuse_surprises(text, name)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise PipelineFileError(
            f"{name} is not valid YAML",
            violations=[Violation(f"{name}:{line}", error.problem or "cannot be read")],
        ) from error
    except yaml.YAMLError as error:
        raise PipelineFileError(f"{name} is not valid YAML: {error}") from error
    if node is None:
        raise PipelineFileError(f"{name} is empty")
    tree.root = _value(node, (), tree)
    return tree


def _refuse_surprises(text: str, name: str) -> None:
    depth = 0  # counted here, before anything that recurses
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise _error(name, _line(event), f"nested deeper than {MAX_DEPTH}")
        if getattr(event, "anchor", None) is not None:
            raise _error(name, _line(event), "anchors and aliases are not allowed")
        if isinstance(event, yaml.CollectionStartEvent | yaml.ScalarEvent) and event.tag:
            raise _error(name, _line(event), f"the tag {event.tag} is not allowed")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _error(name: str, line: int, message: str) -> PipelineFileError:
    return PipelineFileError(
        f"{name} cannot be accepted", violations=[Violation(f"{name}:{line}", message)]
    )


def _value(node: yaml.Node, path: KeyPath, tree: YamlTree) -> Any:
    tree.lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, tree)
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, (*path, index), tree) for index, child in enumerate(node.value)]
    is_plain = isinstance(node, yaml.ScalarNode) and node.style is None
    return _scalar(node.value, is_plain=is_plain)


def _mapping(node: yaml.MappingNode, path: KeyPath, tree: YamlTree) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise _error(tree.name, line, "a key must be a plain name")
        key = key_node.value
        if key in values:
            first = tree.lines[(*path, key)]
            raise _error(tree.name, line, f"{key!r} stands here and on line {first}")
        tree.lines[(*path, key)] = line
        values[key] = _value(value_node, (*path, key), tree)
    return values


def _scalar(text: str, *, is_plain: bool) -> Any:
    if not is_plain:  # quoted or block: always text
        return text
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text) and len(text) <= MAX_DIGITS:
        return int(text)
    if _NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text
