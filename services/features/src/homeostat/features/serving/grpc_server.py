"""gRPC: the same read as over REST; what is wrong with a request fails the call."""

from __future__ import annotations

import grpc

from homeostat.common.errors import (
    HomeostatError,
    InvalidInput,
    NotFound,
    TransientError,
    Violation,
)
from homeostat.common.instants import MAX_MILLIS
from homeostat.common.proto import features_pb2 as pb
from homeostat.common.proto import features_pb2_grpc as pb_grpc
from homeostat.features.serving.reading import FeatureReader, FeatureTable

SERVICE = "homeostat.features.v1.Features"
CODES = {
    NotFound: grpc.StatusCode.NOT_FOUND,
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    TransientError: grpc.StatusCode.UNAVAILABLE,
}


class Features(pb_grpc.FeaturesServicer):
    def __init__(self, reader: FeatureReader) -> None:
        self._reader = reader

    def register(self, server: grpc.aio.Server) -> None:
        pb_grpc.add_FeaturesServicer_to_server(self, server)  # type: ignore[no-untyped-call]  # generated

    async def Read(  # noqa: N802 - the name in the proto
        self, request: pb.ReadRequest, context: grpc.aio.ServicerContext
    ) -> pb.ReadResponse:
        try:
            table = await self._table(request)
        except HomeostatError as error:
            code = CODES.get(type(error), grpc.StatusCode.INTERNAL)
            await context.abort(code, str(error))
            raise
        return _answer(table)

    async def _table(self, request: pb.ReadRequest) -> FeatureTable:
        if not 0 <= request.at <= MAX_MILLIS:
            raise InvalidInput(
                "the instant cannot be used",
                violations=[Violation("at", "outside the years 1970 to 9999")],
            )
        asked = self._reader.asked(
            self._reader.view(request.pipeline),
            [dict(row.keys) for row in request.entities],
            features=list(request.features),
            at=request.at or None,
        )
        [table] = await self._reader.read([asked])
        return table


def _answer(table: FeatureTable) -> pb.ReadResponse:
    read = table.read
    return pb.ReadResponse(
        definition_hash=read.view.definition_hash,
        at=read.at,
        features=read.features,
        rows=[
            pb.ReadRow(
                values=table.values[number].tolist(),
                statuses=table.statuses[number].tobytes(),
                event_times={
                    entity: time
                    for entity, times in table.event_times.items()
                    if (time := times[number]) is not None
                },
            )
            for number in range(read.count)
        ],
    )
