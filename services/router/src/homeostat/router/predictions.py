"""From a body to an answer: the same for the hot route and the declared one."""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from homeostat.common import bodies, telemetry
from homeostat.common.clock import Clock, to_millis
from homeostat.common.errors import (
    Forbidden,
    HomeostatError,
    Overloaded,
    problem,
    unknown_pipeline,
)
from homeostat.common.http import PROBLEM
from homeostat.common.pipeline import Snapshot
from homeostat.common.windows import Status
from homeostat.router import metrics
from homeostat.router.requests import TOKEN_HEADER, Reader
from homeostat.router.routing import Answer, Refused, Routing

_encode = msgspec.json.Encoder().encode
_propagator = TraceContextTextMapPropagator()
_STATUS = tuple(status.name.lower() for status in Status)
_JSON = "application/json"


class Feature(msgspec.Struct, frozen=True):
    value: float | None
    status: str


class Model(msgspec.Struct, frozen=True):
    name: str
    version: int
    variant: str


class Prediction(msgspec.Struct, frozen=True):
    """One answer."""

    prediction_id: str
    score: float
    decision: bool
    threshold: float
    model: Model
    features: dict[str, Feature]
    degraded: bool


@dataclass(frozen=True, slots=True)
class Wire:
    """A response, whatever writes it."""

    status: int
    content: bytes
    media_type: str = _JSON
    headers: Mapping[str, str] = field(default_factory=dict)


class Predictions:
    """Answers bodies; ``readers`` follow the pipelines' snapshots."""

    def __init__(
        self,
        routing: Routing,
        *,
        clock: Clock,
        tracer: trace.Tracer,
        replay_token: str | None,
        pii_key: bytes,
        max_body_bytes: int,
        max_request_rows: int,
        max_in_flight: int,
        is_informed: Callable[[], bool],
    ) -> None:
        self._routing = routing
        self._clock = clock
        self._tracer = tracer
        self._replay_token = replay_token
        self._pii_key = pii_key
        self._max_request_rows = max_request_rows
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._readers: dict[str, Reader] = {}
        self.max_body_bytes = max_body_bytes
        self._is_informed = is_informed

    def learn(self, name: str, snapshot: Snapshot | None) -> None:
        """A pipeline has come, changed or gone."""
        if snapshot is None:
            self._readers.pop(name, None)
        else:
            self._readers[name] = Reader(snapshot.pipeline, pii_key=self._pii_key)

    def reader(self, pipeline: str) -> Reader:
        """What reads the requests of a pipeline.

        Raises:
            NotFound: there is no such pipeline.
            TransientError: no pipeline is known at all yet.
        """
        if reader := self._readers.get(pipeline):
            return reader
        raise unknown_pipeline(pipeline, self._readers, is_informed=self._is_informed())

    async def respond(self, pipeline: str, body: bytes, headers: Mapping[str, str]) -> Wire:
        """The response to a body; every error of ours is a problem document."""
        try:
            reader = self.reader(pipeline)
            cut = bodies.split(
                body, headers.get("content-type", ""), max_rows=self._max_request_rows
            )
            may_replay = self._may_replay(headers)
            rows, is_single = cut.rows, cut.is_single
            self._admit(len(rows))
        except HomeostatError as error:
            return failure(error)
        try:
            answers = await self._answers(pipeline, reader, rows, headers, may_replay)
        finally:
            self._in_flight -= len(rows)
            metrics.IN_FLIGHT.set(self._in_flight)
        if is_single:
            only = answers[0]
            return failure(only) if isinstance(only, HomeostatError) else Wire(200, _encode(only))
        items = [_item(answer) for answer in answers]
        return Wire(200, _encode({"predictions": items}))

    async def _answers(
        self,
        pipeline: str,
        reader: Reader,
        rows: list[bytes],
        headers: Mapping[str, str],
        may_replay: bool,
    ) -> list[Prediction | HomeostatError]:
        parent = headers.get("traceparent")
        if parent is not None and not telemetry.is_sampled(parent):
            return await self._predict_all(pipeline, reader, rows, may_replay, parent)
        context = _propagator.extract({"traceparent": parent}) if parent else None
        with self._tracer.start_as_current_span(
            "POST /v1/pipelines/{pipeline}/predict",
            context=context,
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": "POST",
                "http.route": "/v1/pipelines/{pipeline}/predict",
                "homeostat.pipeline": pipeline,
            },
        ) as span:
            onward = telemetry.traceparent(span) if span.is_recording() else ""
            return await self._predict_all(pipeline, reader, rows, may_replay, onward)

    async def _predict_all(
        self, pipeline: str, reader: Reader, rows: list[bytes], may_replay: bool, onward: str
    ) -> list[Prediction | HomeostatError]:
        if len(rows) == 1:
            return [await self._predict(pipeline, reader, rows[0], may_replay, onward)]
        return await asyncio.gather(
            *(self._predict(pipeline, reader, row, may_replay, onward) for row in rows)
        )

    async def _predict(
        self, pipeline: str, reader: Reader, row: bytes, may_replay: bool, onward: str
    ) -> Prediction | HomeostatError:
        counters = metrics.of(pipeline)
        started = time.monotonic()
        try:
            request = reader.read(row, now=to_millis(self._clock.now()), may_replay=may_replay)
            answer = await self._routing.predict(pipeline, request, trace=onward)
        except HomeostatError as error:
            counters.status(status_of(error)).inc()
            return error
        finally:
            counters.seconds.observe(time.monotonic() - started)
        counters.status(200).inc()
        return shape(pipeline, answer)

    def _may_replay(self, headers: Mapping[str, str]) -> bool:
        sent = headers.get(TOKEN_HEADER)
        if sent is None:
            return False
        token = self._replay_token
        if token is None or not hmac.compare_digest(sent.encode(), token.encode()):
            raise Forbidden("the replay token does not match")
        return True

    def _admit(self, rows: int) -> None:
        if self._in_flight + rows > self._max_in_flight:
            metrics.SHED.inc(rows)
            raise Overloaded(
                f"{self._in_flight} rows are being answered already", retry_after_seconds=1
            )
        self._in_flight += rows
        metrics.IN_FLIGHT.set(self._in_flight)


def shape(pipeline: str, answer: Answer) -> Prediction:
    reply = answer.reply
    return Prediction(
        prediction_id=answer.request.prediction_id,
        score=reply.score,
        decision=reply.decision,
        threshold=reply.threshold,
        model=Model(pipeline, answer.version, answer.variant.value),
        features={
            name: Feature(value if math.isfinite(value) else None, _STATUS[status])
            for name, value, status in zip(
                reply.features, reply.values, reply.statuses, strict=True
            )
        },
        degraded=reply.is_degraded,
    )


def status_of(error: HomeostatError) -> int:
    return error.row_status if isinstance(error, Refused) else int(problem(error)["status"])


def failure(error: HomeostatError) -> Wire:
    headers = {}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_seconds)))
    return Wire(status_of(error), _encode(_document(error)), PROBLEM, headers)


def _item(answer: Prediction | HomeostatError) -> Prediction | dict[str, Any]:
    if isinstance(answer, HomeostatError):
        return {"status": status_of(answer), "problem": _document(answer)}
    return answer


def _document(error: HomeostatError) -> dict[str, Any]:
    if isinstance(error, Refused) and error.document:
        return error.document
    return problem(error)
