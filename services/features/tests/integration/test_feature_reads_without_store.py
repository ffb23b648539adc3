"""The online store goes away under a server, and comes back."""

from __future__ import annotations

import grpc
import pytest

from homeostat.cli.testing import StoppableRedis
from homeostat.common.proto import features_pb2 as pb

from .conftest import Rig
from .serving_server import assert_problem, catalogued, serving

pytestmark = pytest.mark.integration


def test_without_its_store_reads_are_refused_until_it_is_back(
    rig: Rig,
) -> None:
    redis = StoppableRedis()
    redis.start()
    try:
        with serving(rig, REDIS_URL=redis.url) as server:
            asked = {"entities": [{"card": "c1"}], "features": ["card_last"]}
            feast = {"features": [f"{server.name}:card_last"], "entities": {"card": ["c1"]}}
            call = pb.ReadRequest(
                pipeline=server.name, entities=[pb.EntityKeys(keys={"card": "c1"})]
            )
            redis.stop()

            refused = server.read(asked)
            assert_problem(refused, 503, "the online store is away")
            assert refused.headers["retry-after"] == "1"
            assert_problem(server.post("/get-online-features", feast), 503, "online store")
            with pytest.raises(grpc.RpcError) as failure:
                server.call(call)
            assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
            assert catalogued(server)["entities"]["card"]["freshness"] == {
                "status": "unavailable",
                "age_seconds": None,
            }

            redis.start()
            assert server.read(asked).status_code == 200
            assert len(server.call(call).rows) == 1
    finally:
        redis.stop()
