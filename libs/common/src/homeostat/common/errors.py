"""Every error that Homeostat raises on purpose, and its shape on the wire.

::

    HomeostatError
    ├── InvalidInput            422  understood, but not acceptable
    │   ├── Unparsable          400  not even readable
    │   ├── BodyTooLarge        413  more bytes than one request may bring
    │   ├── PipelineFileError   422  a pipeline or policy file, with line and fix
    │   └── InvalidEvent        422  can never succeed: refused, or to the dead-letter topic
    ├── Forbidden               403
    ├── NotFound                404
    ├── Conflict                409
    ├── Overloaded              429  our own queue is full
    ├── TransientError          503  a dependency is away: pause, back off, retry, no commit
    └── DeadlineExceeded        504

Over HTTP each one is an RFC 9457 problem document (``problem``); a consumer lets everything else
crash.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any, ClassVar

import msgspec

MAX_TOLD_NAME = 64  # characters of a sender's name that an answer repeats
MAX_TOLD_NAMES = 20
# What decoding JSON from outside may raise: brackets without end recurse too deeply.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True)
class Violation:
    """One thing that is wrong, where it is, and what would be right."""

    path: str
    message: str
    fix: str | None = None

    def __str__(self) -> str:
        hint = f" ({self.fix})" if self.fix else ""
        return f"{self.path}: {self.message}{hint}"


class HomeostatError(Exception):
    """Base of the tree: a stable ``code``, an HTTP ``status``, and all ``violations`` at once."""

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    code: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        detail: str,
        *,
        fix: str | None = None,
        violations: Sequence[Violation] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fix = fix
        self.violations = tuple(violations)
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        lines = [self.detail, *(f"  {violation}" for violation in self.violations)]
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class InvalidInput(HomeostatError):
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "INVALID_INPUT"


class Unparsable(InvalidInput):
    status = HTTPStatus.BAD_REQUEST
    code = "UNPARSABLE"


class BodyTooLarge(InvalidInput):
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    code = "BODY_TOO_LARGE"


class PipelineFileError(InvalidInput):
    """A pipeline or policy file is wrong; each violation's path reads ``file:line key.path``."""

    code = "PIPELINE_FILE"


class FeaturesRefused(HomeostatError):
    """A feature has a status with which its pipeline file lets nothing be scored."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "FEATURES_REFUSED"

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__(
            "a feature is not fit for a score", fix="see `refuse` of it", violations=violations
        )


class Reason(StrEnum):
    """Why an event was refused or dead-lettered; bounded, so that it can label a metric."""

    UNPARSABLE = "unparsable"
    INVALID = "invalid"
    FUTURE = "future"
    CONFLICT = "conflict"
    UNKNOWN_PIPELINE = "unknown_pipeline"


class InvalidEvent(InvalidInput):
    """A record that can never succeed, however often it is tried."""

    code = "INVALID_EVENT"

    def __init__(
        self,
        detail: str,
        *,
        reason: Reason = Reason.INVALID,
        fix: str | None = None,
        violations: Sequence[Violation] = (),
    ) -> None:
        super().__init__(detail, fix=fix, violations=violations)
        self.reason = reason


class Forbidden(HomeostatError):
    status = HTTPStatus.FORBIDDEN
    code = "FORBIDDEN"


class NotFound(HomeostatError):
    status = HTTPStatus.NOT_FOUND
    code = "NOT_FOUND"


class Conflict(HomeostatError):
    status = HTTPStatus.CONFLICT
    code = "CONFLICT"


class Overloaded(HomeostatError):
    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "OVERLOADED"


class TransientError(HomeostatError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "UNAVAILABLE"


class DeadlineExceeded(HomeostatError):
    status = HTTPStatus.GATEWAY_TIMEOUT
    code = "DEADLINE_EXCEEDED"


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """A fix for a name that is not known, if one is near; the name may be as long as it likes."""
    near = difflib.get_close_matches(name[:MAX_TOLD_NAME], list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else None


def unknown_names(
    names: Iterable[str], known: Iterable[str], *, what: str, where: str = ""
) -> list[Violation]:
    """One violation for each name that is not known: the first ones, as each costs a search."""
    known = tuple(known)
    unknown = itertools.islice((name for name in names if name not in known), MAX_TOLD_NAMES)
    return [
        Violation(f"{where}{name[:MAX_TOLD_NAME]}", what, did_you_mean(name, known))
        for name in unknown
    ]


def unknown_pipeline(name: str, known: Iterable[str], *, is_informed: bool) -> HomeostatError:
    """What to tell somebody who asks for a pipeline that is not known, or not known yet."""
    if not is_informed:
        return TransientError(
            "the pipelines are not known yet: Kafka has not answered", retry_after_seconds=2
        )
    return NotFound(
        f"there is no pipeline {name[:MAX_TOLD_NAME]!r}",
        fix=did_you_mean(name, known) or "publish it with: homeostat apply pipeline.yaml",
    )


def why_unreadable(error: Exception) -> str:
    """One of ``UNREADABLE`` in the words of somebody who sends JSON."""
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def problem(error: HomeostatError) -> dict[str, Any]:
    """Shape an error as an RFC 9457 problem document.

    ``type`` is a relative reference by code, so that it stays stable whatever the host is.
    """
    # What cannot be read is told alike, whether it is a whole body or one row of it.
    is_unparsable = isinstance(error, InvalidEvent) and error.reason is Reason.UNPARSABLE
    kind = Unparsable if is_unparsable else type(error)
    status, code = kind.status, kind.code
    document: dict[str, Any] = {
        "type": f"/problems/{code.lower().replace('_', '-')}",
        "title": status.phrase,
        "status": int(status),
        "code": code,
        "detail": error.detail,
    }
    if error.fix:
        document["fix"] = error.fix
    if error.violations:
        document["violations"] = [
            {"path": item.path, "message": item.message} | ({"fix": item.fix} if item.fix else {})
            for item in error.violations
        ]
    if isinstance(error, InvalidEvent):
        document["reason"] = error.reason.value
    return document
