"""Sends slices through the front doors, and holds the clock while a decision is pending."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from homeostat.cli.replay.drain import Drain
from homeostat.common.errors import HomeostatError, TransientError
from homeostat.common.recording import Slice

# Every hop works by the batch, and a batch is never larger than the request that it came with.
ROWS_PER_REQUEST = 8_000
BYTES_PER_REQUEST = 2_000_000
PREDICTIONS_PER_REQUEST = 100
PREDICTORS = 4  # requests for predictions under way at once
ATTEMPTS = 8

_encode_line = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines


class _Answer(msgspec.Struct):
    accepted: int
    refused: int
    items: list[dict[str, Any]]


class _Model(msgspec.Struct):
    version: int
    variant: str


class Predicted(msgspec.Struct):
    """One answer of the router; ``score`` is null where the row was answered with a problem."""

    score: float | None = None
    decision: bool | None = None
    model: _Model | None = None
    problem: dict[str, Any] | None = None


class _Predictions(msgspec.Struct):
    predictions: list[Predicted]


@dataclass
class Report:
    """What was sent, and what the front doors said."""

    events: int = 0
    labels: int = 0
    refused: int = 0
    predictions: int = 0
    errors: int = 0  # predictions that a caller did not get
    first_refusal: dict[str, Any] | None = None
    first_error: dict[str, Any] | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Doors:
    """Where a replay enters; without ``router`` nobody asks for predictions."""

    pipeline: str
    ingest: str
    token: str
    router: str | None = None

    def headers(self) -> dict[str, str]:
        return {"X-Replay-Token": self.token, "Content-Type": "application/x-ndjson"}


def _nobody(_rows: Sequence[dict[str, Any]], _answers: Sequence[Predicted]) -> None:
    """Nobody listens to the predictions."""


@dataclass
class Player:
    """Plays slices at ``speed`` times event time; 0 plays as fast as the pipeline drains.

    Each slice: events, predictions for them once their features are there, then the labels that
    became known, which none of its events sees. Every ``rest_every`` ms of event time the whole
    pipeline comes to rest.
    """

    doors: Doors
    drain: Drain
    rest_every: int
    speed: float = 0
    on_predictions: Callable[[Sequence[dict[str, Any]], Sequence[Predicted]], None] = _nobody
    report: Report = field(default_factory=Report)

    async def play(
        self,
        slices: Iterable[Slice],
        *,
        on_slice: Callable[[Slice, Report], None] = lambda *_: None,
    ) -> Report:
        report = self.report
        started = time.monotonic()
        first: int | None = None
        async with httpx.AsyncClient(timeout=60) as http:
            for part in slices:
                first = part.start if first is None else first
                await self._send(http, "events", part.events)
                report.events += len(part.events)
                if part.events and (part.labels or self.doors.router is not None):
                    # A label goes straight to each entity, and would overtake its slice's events.
                    await self.drain.wait("features")
                if self.doors.router is not None:
                    await self._predict(http, self.doors.router, part.events)
                await self._send(http, "labels", part.labels)
                report.labels += len(part.labels)
                if part.end % self.rest_every == 0:
                    await self.drain.wait()
                report.seconds = time.monotonic() - started
                on_slice(part, report)
                if self.speed:
                    due = started + (part.end - first) / 1000 / self.speed
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
        await self.drain.wait()
        return report

    async def _send(
        self, http: httpx.AsyncClient, kind: str, rows: Sequence[dict[str, Any]]
    ) -> None:
        # One request at a time: the order per key is the order of the file.
        address = f"{self.doors.ingest}/v1/pipelines/{self.doors.pipeline}/{kind}"
        for body in bodies(rows):
            response = await self._post(http, address, body)
            answer = msgspec.json.decode(response, type=_Answer)
            self.report.refused += answer.refused
            if answer.refused and self.report.first_refusal is None:
                refusals = (item for item in answer.items if item["status"] >= 400)
                self.report.first_refusal = next(refusals)

    async def _predict(
        self, http: httpx.AsyncClient, router: str, rows: Sequence[dict[str, Any]]
    ) -> None:
        address = f"{router}/v1/pipelines/{self.doors.pipeline}/predict"
        turn = asyncio.Semaphore(PREDICTORS)

        async def ask(chunk: Sequence[dict[str, Any]]) -> None:
            async with turn:
                answers = await self._ask(http, address, chunk)
            self.report.predictions += len(chunk)
            failed = [answer for answer in answers if answer.score is None]
            self.report.errors += len(failed)
            if failed and self.report.first_error is None:
                self.report.first_error = failed[0].problem
            self.on_predictions(chunk, answers)

        await asyncio.gather(*map(ask, _chunks(rows, PREDICTIONS_PER_REQUEST)))

    async def _ask(
        self, http: httpx.AsyncClient, address: str, rows: Sequence[dict[str, Any]]
    ) -> list[Predicted]:
        """One request as a caller makes it: not repeated, whatever happens."""
        try:
            response = await http.post(
                address, content=_encode_lines(rows), headers=self.doors.headers()
            )
        except httpx.TransportError as error:
            return [Predicted(problem={"detail": repr(error)})] * len(rows)
        if response.status_code != 200:
            return [Predicted(problem={"detail": response.text[:500]})] * len(rows)
        return msgspec.json.decode(response.content, type=_Predictions).predictions

    async def _post(self, http: httpx.AsyncClient, address: str, body: bytes) -> bytes:
        """Post until the front door answers; an event id makes a repeated batch harmless."""
        for attempt in itertools.count(1):
            try:
                response = await http.post(address, content=body, headers=self.doors.headers())
            except httpx.TransportError as error:
                if attempt == ATTEMPTS:
                    raise TransientError(f"ingest does not answer: {error!r}") from error
                await asyncio.sleep(min(0.1 * 2**attempt, 5.0))
                continue
            if response.status_code in (429, 503) and attempt < ATTEMPTS:
                await asyncio.sleep(float(response.headers.get("Retry-After", "1")))
                continue
            if response.status_code != 202:
                raise HomeostatError(f"ingest refused a batch: {response.text[:500]}")
            return response.content
        raise AssertionError("unreachable")


def bodies(
    rows: Iterable[dict[str, Any]],
    *,
    max_rows: int = ROWS_PER_REQUEST,
    max_bytes: int = BYTES_PER_REQUEST,
) -> Iterator[bytes]:
    """NDJSON in as few requests as the front door takes; a row is never divided.

    >>> list(bodies([{"a": 1}, {"a": 2}, {"a": 3}], max_rows=2))
    [b'{"a":1}\\n{"a":2}', b'{"a":3}']
    """
    lines: list[bytes] = []
    size = 0
    for line in map(_encode_line, rows):
        if lines and (len(lines) == max_rows or size + len(line) > max_bytes):
            yield b"\n".join(lines)
            lines, size = [], 0
        lines.append(line)
        size += len(line) + 1
    if lines:
        yield b"\n".join(lines)


def _chunks(rows: Sequence[dict[str, Any]], size: int) -> Iterable[Sequence[dict[str, Any]]]:
    return (rows[low : low + size] for low in range(0, len(rows), size))
