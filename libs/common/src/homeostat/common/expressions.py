"""The closed expression language of pipeline files: parsed once, evaluated over whole columns.

An expression is one line of arithmetic, comparison, boolean logic and the functions of `FUNCTIONS`.
Values are float64 columns in which NaN stands for null, and true is 1.0. Null goes through
arithmetic and comparison; ``and`` and ``or`` follow three-valued logic (false and null is false);
a division by zero is null.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
from numpy.typing import NDArray

Column: TypeAlias = NDArray[np.float64]
Columns: TypeAlias = Mapping[str, Column]
Evaluate: TypeAlias = Callable[[Columns], Any]  # a column, or a number for a constant

MAX_LENGTH = 1_000
MAX_NODES = 200
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
QUARTER_MS = 900_000  # every zone's offset changes at a quarter of an hour
# The calendar of the standard library, less a day at each end for the offset; beyond it is null.
FIRST_MS, END_MS = -62_135_510_400_000, 253_402_214_400_000


class ExpressionError(ValueError):
    """What is wrong with an expression, at which column, and what would be right."""


class NameKind(StrEnum):
    NUMBER = "number"
    CATEGORY = "category"
    TIME = "time"


class Name(NamedTuple):
    """A name that an expression may use; ``values`` are those of a category, in their order."""

    kind: NameKind
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Expression:
    """A compiled expression; ``names`` are those it reads, in the order of their appearance."""

    text: str
    names: tuple[str, ...]
    _evaluate: Evaluate

    def evaluate(self, columns: Columns) -> Column:
        """The value of each row: ``columns[name]`` is float64[n] for every name, NaN for null."""
        count = next(iter(columns.values())).shape[0]
        with np.errstate(all="ignore"):
            value = np.asarray(self._evaluate(columns), np.float64)
        return np.where(np.isfinite(value), value, np.nan) if value.ndim else np.full(count, value)


def compile_expression(text: str, names: Mapping[str, Name]) -> Expression:
    """Parse and compile; ``names`` says which names exist and what they are.

    >>> expression = compile_expression("amount / mean > 2", {
    ...     "amount": Name(NameKind.NUMBER), "mean": Name(NameKind.NUMBER)})
    >>> expression.evaluate({"amount": np.array([9.0, 1.0]), "mean": np.array([3.0, np.nan])})
    array([ 1., nan])

    Raises:
        ExpressionError: anything that the language does not have.
    """
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"longer than {MAX_LENGTH} characters")
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        raise ExpressionError(f"column {error.offset or 1}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError):
        raise ExpressionError("not an expression") from None
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise ExpressionError(f"more than {MAX_NODES} parts: split it into several features")
    compiler = _Compiler(names)
    evaluate = compiler.number(tree.body)
    return Expression(text, tuple(compiler.used), evaluate)


class _Compiler:
    """Turns syntax into closures; ``used`` collects the names that are read."""

    def __init__(self, names: Mapping[str, Name]) -> None:
        self._names = names
        self.used: dict[str, None] = {}

    def number(self, node: ast.expr) -> Evaluate:
        """A subexpression whose value is a number."""
        match node:
            case ast.Constant(value=bool() | int() | float() as value) if math.isfinite(value):
                constant = float(value)
                return lambda _columns: constant
            case ast.Name(id=name):
                return self._read(node, name, NameKind.NUMBER)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                return _apply(_ARITHMETIC[type(op)], self.number(left), self.number(right))
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
                return _apply(_UNARY[type(op)], self.number(operand))
            case ast.BoolOp(op=op, values=values):
                combine = _and if isinstance(op, ast.And) else _or
                return _fold(combine, [self.number(value) for value in values])
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                return self._compare(left, ops, comparators)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self._call(node, name, arguments)
        raise _error(node, f"{ast.unparse(node)!r} is not part of the language")

    def _read(self, node: ast.expr, name: str, kind: NameKind) -> Evaluate:
        known = self._names.get(name)
        if known is None:
            raise _error(node, f"there is no {name!r}{_nearest(name, self._names)}")
        if known.kind is not kind:
            hint = {
                NameKind.CATEGORY: f"compare it with a value, or write code({name})",
                NameKind.TIME: f"write hour({name}, 'UTC') or weekday({name}, 'UTC')",
                NameKind.NUMBER: "it is a number",
            }[known.kind]
            raise _error(node, f"{name!r} is a {known.kind}, not a {kind}: {hint}")
        self.used[name] = None
        return lambda columns: columns[name]

    def _compare(
        self, left: ast.expr, ops: Sequence[ast.cmpop], rights: Sequence[ast.expr]
    ) -> Evaluate:
        parts = []
        for op, low, high in zip(ops, [left, *rights[:-1]], rights, strict=True):
            if type(op) not in _COMPARISONS:
                raise _error(
                    left, f"the comparison {type(op).__name__} is not part of the language"
                )
            parts.append(self._comparison(op, low, high))
        return _fold(_and, parts)

    def _comparison(self, op: ast.cmpop, low: ast.expr, high: ast.expr) -> Evaluate:
        compare = _nullable(_COMPARISONS[type(op)])
        match (low, high) if isinstance(op, ast.Eq | ast.NotEq) else ():
            case (ast.Name() as category, ast.Constant(value=str()) as text):
                return _apply(compare, *self._membership(category, text))
            case (ast.Constant(value=str()) as text, ast.Name() as category):
                return _apply(compare, *self._membership(category, text))
        return _apply(compare, self.number(low), self.number(high))

    def _membership(self, category: ast.Name, text: ast.Constant) -> tuple[Evaluate, Evaluate]:
        read = self._read(category, category.id, NameKind.CATEGORY)
        code = self._code(category, text)
        return read, lambda _columns: code

    def _code(self, category: ast.Name, text: ast.Constant) -> float:
        values = self._names[category.id].values
        if text.value not in values:
            hint = _nearest(str(text.value), values)
            raise _error(text, f"{category.id!r} is never {text.value!r}{hint}")
        return float(values.index(str(text.value)))

    def _call(self, node: ast.expr, name: str, arguments: Sequence[ast.expr]) -> Evaluate:
        if name in ("hour", "weekday"):
            return self._calendar(node, name, arguments)
        if name == "code":
            match arguments:
                case [ast.Name(id=category)]:
                    return self._read(arguments[0], category, NameKind.CATEGORY)
            raise _error(node, "write code(category), with the name of a category field")
        if name not in FUNCTIONS:
            known = [*FUNCTIONS, "hour", "weekday", "code"]
            raise _error(node, f"there is no function {name!r}{_nearest(name, known)}")
        function, least, most = FUNCTIONS[name]
        if not least <= len(arguments) <= most:
            count = f"{least}" if least == most else f"{least} to {most}"
            raise _error(node, f"{name} takes {count} arguments, not {len(arguments)}")
        return _apply(function, *(self.number(argument) for argument in arguments))

    def _calendar(self, node: ast.expr, name: str, arguments: Sequence[ast.expr]) -> Evaluate:
        match arguments:
            case [ast.Name(id=time), ast.Constant(value=str() as zone_name)]:
                read = self._read(arguments[0], time, NameKind.TIME)
            case _:
                raise _error(node, f"write {name}(event_time, 'UTC'), or another time zone")
        try:
            zone = ZoneInfo(zone_name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise _error(arguments[1], f"there is no time zone {zone_name!r}") from None
        part = _hour if name == "hour" else _weekday
        return lambda columns: part(_local(read(columns), zone))


def _error(node: ast.expr, message: str) -> ExpressionError:
    return ExpressionError(f"column {node.col_offset + 1}: {message}")


def _nearest(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _apply(function: Callable[..., Any], *operands: Evaluate) -> Evaluate:
    return lambda columns: function(*(operand(columns) for operand in operands))


def _fold(combine: Callable[[Any, Any], Any], parts: Sequence[Evaluate]) -> Evaluate:
    whole = parts[0]
    for part in parts[1:]:
        whole = _apply(combine, whole, part)
    return whole


def _nullable(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Comparison by IEEE rules would call null different from everything; here it stays null."""
    return lambda a, b: np.where(np.isnan(a) | np.isnan(b), np.nan, compare(a, b))


def _and(a: Any, b: Any) -> Any:
    is_null = np.isnan(a) | np.isnan(b)
    return np.where((a == 0) | (b == 0), 0.0, np.where(is_null, np.nan, 1.0))


def _or(a: Any, b: Any) -> Any:
    is_true = (~np.isnan(a) & (a != 0)) | (~np.isnan(b) & (b != 0))
    return np.where(is_true, 1.0, np.where(np.isnan(a) | np.isnan(b), np.nan, 0.0))


def _not(a: Any) -> Any:
    return np.where(np.isnan(a), np.nan, a == 0)


def _where(condition: Any, then: Any, otherwise: Any) -> Any:
    return np.where(np.isnan(condition), np.nan, np.where(condition != 0, then, otherwise))


def _divide(a: Any, b: Any) -> Any:
    return np.where(np.asarray(b) == 0, np.nan, np.divide(a, b))


def _remainder(a: Any, b: Any) -> Any:
    return np.where(np.asarray(b) == 0, np.nan, np.mod(a, b))


def _log1p(a: Any) -> Any:
    """One by one: numpy's vector units differ in the last bit from one processor to the next."""
    return np.asarray(_LOG1P(a), np.float64)


def _local(times: Column, zone: ZoneInfo) -> Column:
    """Epoch ms moved by the zone's offset at each instant; offsets are looked up once a quarter."""
    times = np.where((times >= FIRST_MS) & (times < END_MS), times, np.nan)
    quarters, places = np.unique(np.floor(times / QUARTER_MS), return_inverse=True)
    offsets = [
        math.nan if math.isnan(quarter) else _offset_ms(quarter * QUARTER_MS, zone)
        for quarter in quarters.tolist()
    ]
    return times + np.array(offsets, np.float64)[places]


def _offset_ms(instant_ms: float, zone: ZoneInfo) -> float:
    offset = datetime.fromtimestamp(instant_ms / 1000, UTC).astimezone(zone).utcoffset()
    return offset.total_seconds() * 1000 if offset else 0.0


def _hour(local: Column) -> Column:
    hour: Column = np.floor((local - np.floor(local / DAY_MS) * DAY_MS) / HOUR_MS)
    return hour


def _weekday(local: Column) -> Column:
    day: Column = np.mod(np.floor(local / DAY_MS) + 3, 7)  # 1970-01-01 was a Thursday; Monday is 0
    return day


_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
    ast.Mod: _remainder,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: _not,
}
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}
_LOG1P = np.frompyfunc(lambda x: math.log1p(x) if x > -1 else math.nan, 1, 1)
# name → what it computes, fewest and most arguments; a null argument makes a null, but for is_null
FUNCTIONS: Mapping[str, tuple[Callable[..., Any], int, int]] = {
    "abs": (np.abs, 1, 1),
    "log1p": (_log1p, 1, 1),
    "sqrt": (np.sqrt, 1, 1),
    "min": (np.minimum, 2, 2),
    "max": (np.maximum, 2, 2),
    "clip": (np.clip, 3, 3),
    "where": (_where, 3, 3),
    "is_null": (lambda a: np.isnan(a).astype(np.float64), 1, 1),
}
