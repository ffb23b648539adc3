"""gRPC: ``ScoreBatch``. Every row has its own status; the call itself succeeds."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import timedelta

import grpc
import msgspec

from homeostat.common.assignment import Variant
from homeostat.common.errors import HomeostatError, InvalidInput, Violation, problem
from homeostat.common.events import MAX_ID_LENGTH, MAX_TEXT_LENGTH
from homeostat.common.instants import MAX_MILLIS
from homeostat.common.proto import inference_pb2 as pb
from homeostat.common.proto import inference_pb2_grpc as pb_grpc
from homeostat.inference.batching import NO_DEADLINE
from homeostat.inference.models import LoadedModel, Models
from homeostat.inference.pipelines import Pipelines
from homeostat.inference.scoring import DataPlane, Input, Row, Scored

SERVICE = "homeostat.inference.v1.Inference"
_encode = msgspec.json.Encoder().encode


class Inference(pb_grpc.InferenceServicer):
    def __init__(
        self, pipelines: Pipelines, models: Models, plane: DataPlane, *, max_timeout: timedelta
    ) -> None:
        self._pipelines = pipelines
        self._models = models
        self._plane = plane
        self._max_seconds = max_timeout.total_seconds()

    def register(self, server: grpc.aio.Server) -> None:
        pb_grpc.add_InferenceServicer_to_server(self, server)  # type: ignore[no-untyped-call]  # generated

    async def ScoreBatch(  # noqa: N802 - the name in the proto
        self, request: pb.ScoreBatchRequest, context: grpc.aio.ServicerContext
    ) -> pb.ScoreBatchResponse:
        try:
            model = self._model(request.pipeline, request.version)
            rows = self._rows(request, model, context)
            results = await self._score(rows)
        except HomeostatError as error:
            return pb.ScoreBatchResponse(rows=[_failed(row, error) for row in request.rows])
        version = model.version
        return pb.ScoreBatchResponse(
            version=version.version,
            features=version.features,
            definition_hash=version.definition_hash,
            threshold=version.threshold,
            rows=[_answer(*item) for item in zip(request.rows, results, strict=True)],
        )

    def _model(self, pipeline: str, version: int) -> LoadedModel:
        self._pipelines.get(pipeline)
        return self._models.get(pipeline, version) if version else self._models.champion(pipeline)

    async def _score(self, rows: Sequence[Row | HomeostatError]) -> list[Scored | HomeostatError]:
        scored = iter(await self._plane.score([row for row in rows if isinstance(row, Row)]))
        return [row if isinstance(row, HomeostatError) else next(scored) for row in rows]

    def _rows(
        self,
        request: pb.ScoreBatchRequest,
        model: LoadedModel,
        context: grpc.aio.ServicerContext,
    ) -> list[Row | HomeostatError]:
        served = self._pipelines.get(request.pipeline)
        variant = _variant(request.variant)
        now = time.monotonic()
        left = context.time_remaining()
        latest = now + min(self._max_seconds, NO_DEADLINE if left is None else left)
        rows: list[Row | HomeostatError] = []
        for row in request.rows:
            values = _input(row)
            if isinstance(values, HomeostatError):
                rows.append(values)
                continue
            rows.append(
                Row(
                    served=served,
                    model=model,
                    variant=variant,
                    prediction_id=row.prediction_id,
                    unit=row.unit,
                    input=values,
                    rollout=request.rollout,
                    propensity=row.propensity or 1.0,
                    deadline=min(latest, now + row.timeout_ms / 1e3) if row.timeout_ms else latest,
                    traceparent=row.traceparent or None,
                    available_at=row.available_at or None,
                )
            )
        return rows


def _variant(name: str) -> Variant:
    try:
        return Variant(name or Variant.CHAMPION)
    except ValueError:
        known = ", ".join(Variant)
        raise InvalidInput(f"unknown variant {name[:32]!r}", fix=f"one of {known}") from None


def _input(row: pb.ScoreRow) -> Input | HomeostatError:
    if problems := _problems(row):
        return InvalidInput("the row is invalid", violations=problems)
    match row.WhichOneof("input"):
        case "event":
            return bytes(row.event)
        case "entities":
            return dict(row.entities.keys)
        case "vector":
            return list(row.vector.values)
        case _:
            return InvalidInput("the row brings nothing", fix="set event, entities or vector")


def _problems(row: pb.ScoreRow) -> list[Violation]:
    """What would go wrong on the ledger's topic, or with the pipeline's clock."""
    problems = []
    if len(row.prediction_id) > MAX_ID_LENGTH:
        problems.append(Violation("prediction_id", f"longer than {MAX_ID_LENGTH} characters"))
    if len(row.unit) > MAX_TEXT_LENGTH:  # it may be made of several keys
        problems.append(Violation("unit", f"longer than {MAX_TEXT_LENGTH} characters"))
    if not 0 <= row.available_at <= MAX_MILLIS:
        problems.append(Violation("available_at", "outside the years 1970 to 9999"))
    return problems


def _answer(row: pb.ScoreRow, result: Scored | HomeostatError) -> pb.ScoredRow:
    if isinstance(result, HomeostatError):
        return _failed(row, result)
    features = result.features
    return pb.ScoredRow(
        prediction_id=row.prediction_id,
        status=200,
        score=result.score,
        decision=result.decision,
        values=features.values.tolist(),
        statuses=features.statuses.tobytes(),
        age_ms=features.age_ms,
        is_degraded=features.is_degraded,
    )


def _failed(row: pb.ScoreRow, error: HomeostatError) -> pb.ScoredRow:
    document = problem(error)
    return pb.ScoredRow(
        prediction_id=row.prediction_id,
        status=document["status"],
        score=math.nan,
        problem=_encode(document),
    )
