"""What every HTTP edge shares."""

from collections.abc import AsyncIterator

import httpx
import pytest
from pydantic import BaseModel

from homeostat.common.health import Health
from homeostat.common.http import application


class Order(BaseModel):
    by: str


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = application(Health("test"), max_body_bytes=20)

    @app.post("/orders")
    async def take(order: Order) -> Order:
        return order

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test"
    ) as client:
        yield client


async def in_parts(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 5):
        yield body[at : at + 5]


@pytest.mark.parametrize("is_announced", [True, False])
async def test_a_body_that_is_too_long_is_a_problem_document(
    client: httpx.AsyncClient, is_announced: bool
) -> None:
    body = b'{"by": "' + b"x" * 20 + b'"}'

    answer = await client.post(
        "/orders",
        content=body if is_announced else in_parts(body),
        headers={"content-type": "application/json"},
    )

    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "BODY_TOO_LARGE"
    assert "20 bytes" in answer.json()["detail"]


async def test_a_body_within_the_limit_is_taken(client: httpx.AsyncClient) -> None:
    answer = await client.post("/orders", json={"by": "x" * 10})

    assert (answer.status_code, answer.json()) == (200, {"by": "x" * 10})
