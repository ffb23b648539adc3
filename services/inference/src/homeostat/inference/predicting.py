"""From a ``predict`` body to its answer: one function, whatever carries it."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import msgspec

from homeostat.common import bodies
from homeostat.common.assignment import Variant
from homeostat.common.errors import HomeostatError, NotFound, TransientError, problem
from homeostat.inference import requests
from homeostat.inference.answers import Answer, Answers, answer, refusal
from homeostat.inference.models import LoadedModel, Models
from homeostat.inference.pipelines import Pipelines, ServedPipeline
from homeostat.inference.requests import Asked
from homeostat.inference.scoring import DataPlane, Row, Scored

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The model of a unit, and how it was chosen."""

    model: LoadedModel
    variant: Variant
    rollout: str
    propensity: float


class Predictor:
    def __init__(
        self,
        pipelines: Pipelines,
        models: Models,
        plane: DataPlane,
        *,
        max_rows: int,
        max_timeout: timedelta,
    ) -> None:
        self._pipelines = pipelines
        self._models = models
        self._plane = plane
        self._max_rows = max_rows
        self._max_seconds = max_timeout.total_seconds()

    async def predict(
        self, pipeline: str, body: bytes, *, content_type: str, traceparent: str | None
    ) -> Reply:
        """Answer a request; a single row answers for itself, a batch row by row."""
        try:
            served = self._pipelines.get(pipeline)
            cut = bodies.split(body, content_type, max_rows=self._max_rows)
            answers = await self._answers(served, cut.rows, traceparent)
        except HomeostatError as error:
            return failed(error)
        if not cut.is_single:
            predictions = [
                refusal(item) if isinstance(item, HomeostatError) else item for item in answers
            ]
            return Reply(200, _encode(Answers(predictions)))
        [only] = answers
        return failed(only) if isinstance(only, HomeostatError) else Reply(200, _encode(only))

    async def _answers(
        self, served: ServedPipeline, raw_rows: Sequence[bytes], traceparent: str | None
    ) -> list[Answer | HomeostatError]:
        deadline = time.monotonic() + self._max_seconds
        prepared = [self._row(served, raw, deadline, traceparent) for raw in raw_rows]
        rows = [row for row in prepared if isinstance(row, Row)]
        results = iter(await self._plane.score(rows))
        return [
            item if isinstance(item, HomeostatError) else _answered(item, next(results))
            for item in prepared
        ]

    def _row(
        self, served: ServedPipeline, raw: bytes, deadline: float, traceparent: str | None
    ) -> Row | HomeostatError:
        try:
            asked = requests.read(raw, served.pipeline)
            choice = self.choose(served.name, asked)
            return Row(
                served=served,
                model=choice.model,
                variant=choice.variant,
                prediction_id=uuid.uuid4().hex,
                unit=asked.unit,
                input=asked.input_for(choice.model),
                rollout=choice.rollout,
                propensity=choice.propensity,
                deadline=deadline,
                traceparent=traceparent,
            )
        except HomeostatError as error:
            return error

    def choose(self, pipeline: str, asked: Asked) -> Choice:
        """The version that the rollout gives a unit, on every path the same.

        A challenger that does not answer here is stood in for by the champion, and so is one for a
        request without a unit, which no experiment can place.
        """
        rollout = self._models.rollout(pipeline)
        champion = self._models.champion(pipeline)
        if rollout is None or not asked.unit:
            return Choice(champion, Variant.CHAMPION, "", 1.0)
        variant = rollout.assign(asked.unit)
        if variant is Variant.CHALLENGER and rollout.challenger is not None:
            try:
                model = self._models.get(pipeline, rollout.challenger)
            except (NotFound, TransientError):
                variant = Variant.CHAMPION
            else:
                propensity = rollout.split.propensity(variant)
                return Choice(model, variant, rollout.rollout, propensity)
        return Choice(champion, variant, rollout.rollout, rollout.split.propensity(variant))


def failed(error: HomeostatError) -> Reply:
    document = problem(error)
    return Reply(document["status"], _encode(document), error.retry_after_seconds)


def _answered(row: Row, result: Scored | HomeostatError) -> Answer | HomeostatError:
    return result if isinstance(result, HomeostatError) else answer(row, result)


def retry_after(seconds: float) -> bytes:
    return str(max(1, math.ceil(seconds))).encode()
