"""REST: reading features of many entities, and the catalogue."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from homeostat.common import bodies
from homeostat.common.clock import from_millis
from homeostat.common.errors import UNREADABLE, InvalidInput, Unparsable, Violation, why_unreadable
from homeostat.common.feature_store.reading import FeatureValue, shown
from homeostat.common.instants import parse_time
from homeostat.features.serving.catalogue import Catalogue
from homeostat.features.serving.reading import FeatureReader, FeatureTable

MAX_BODY_BYTES = 5_000_000

_encode = msgspec.json.Encoder().encode


class ReadRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``features``: all unless named; ``at``: now unless given, in any form that events have."""

    entities: list[dict[str, str]]
    features: list[str] = []
    at: int | float | str | None = None


class EntityState(msgspec.Struct, frozen=True):
    """What an entity's features were computed from; null: none of its events is known."""

    key: str
    event_time: datetime | None  # of its newest event
    age_seconds: float | None  # at ``at``


class Row(msgspec.Struct, frozen=True):
    entities: dict[str, EntityState]
    features: dict[str, FeatureValue]


class ReadAnswer(msgspec.Struct, frozen=True):
    pipeline: str
    definition_hash: str
    at: datetime
    rows: list[Row]


_decode = msgspec.json.Decoder(ReadRequest, strict=True).decode


def routes(reader: Callable[[], FeatureReader], catalogue: Callable[[], Catalogue]) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["features"])

    @router.post(
        "/pipelines/{pipeline}/features/read",
        summary="Values, statuses and ages of features of many entities",
        openapi_extra={"requestBody": {"content": {"application/json": {}}, "required": True}},
    )
    async def read(pipeline: str, request: Request) -> Response:
        view = reader().view(pipeline)
        asked: ReadRequest = decoded(_decode, await body_of(request))
        prepared = reader().asked(
            view, asked.entities, features=asked.features, at=_instant(asked.at)
        )
        [table] = await reader().read([prepared])
        return as_json(_answer(table))

    @router.get("/features/catalogue", summary="Every feature: what it is, costs and feeds")
    async def catalogued(pipeline: str | None = None) -> Response:
        return as_json({"pipelines": await catalogue().entries(pipeline)})

    return router


async def body_of(request: Request) -> bytes:
    """
    Raises:
        BodyTooLarge: more than ``MAX_BODY_BYTES``.
    """
    announced = request.headers.get("content-length", "")
    return await bodies.read(request.receive, limit=MAX_BODY_BYTES, announced=announced) or b""


def decoded(decode: Callable[[bytes], Any], body: bytes) -> Any:
    """The request that a body holds, whatever its content type.

    Raises:
        Unparsable: not JSON.
        InvalidInput: JSON of another shape.
    """
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        place = path.strip("`").removeprefix("$").removeprefix(".") or "body"
        raise InvalidInput(
            "the request is invalid", violations=[Violation(place, message)]
        ) from error
    except UNREADABLE as error:
        raise Unparsable(f"the body is not JSON: {why_unreadable(error)}") from error


def as_json(document: Any) -> Response:
    return Response(_encode(document), media_type="application/json")


def _instant(at: int | float | str | None) -> int | None:
    if at is None:
        return None
    try:
        return parse_time(at)
    except ValueError as error:
        raise InvalidInput(
            "the instant cannot be used", violations=[Violation("at", str(error))]
        ) from error


def _answer(table: FeatureTable) -> ReadAnswer:
    read = table.read
    return ReadAnswer(
        pipeline=read.view.pipeline.name,
        definition_hash=read.view.definition_hash,
        at=from_millis(read.at),
        rows=[
            Row(
                entities={
                    entity: _state(key, table.event_times[entity][number], read.at)
                    for entity, keys in read.keys.items()
                    if (key := keys[number]) is not None
                },
                features=shown(read.features, table.values[number], table.statuses[number]),
            )
            for number in range(read.count)
        ],
    )


def _state(key: str, event_time: int | None, at: int) -> EntityState:
    if event_time is None:
        return EntityState(key, None, None)
    return EntityState(key, from_millis(event_time), max(0, at - event_time) / 1000)
