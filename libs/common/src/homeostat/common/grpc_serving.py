"""What every gRPC edge shares: one server with health and reflection, which drains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

MAX_MESSAGE_BYTES = 16_000_000
GRACE_SECONDS = 10.0


class GrpcServer:
    """Serves one service; ``stop`` lets what is in flight finish.

    ``register`` puts the servicer into the server that it is given. ``service`` is its full name,
    for health and reflection.
    """

    def __init__(self, register: Callable[[Any], None], *, service: str, address: str) -> None:
        self._register = register
        self._service = service
        self._address = address
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),  # a port taken twice is an error, not a coin toss
        ]
        server = self._server = grpc.aio.server(options=options)
        self._register(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            (self._service, health.SERVICE_NAME, reflection.SERVICE_NAME), server
        )
        self.port = server.add_insecure_port(self._address)
        await server.start()
        for name in ("", self._service):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        if self._server is not None:
            await self._health.enter_graceful_shutdown()
            await self._server.stop(GRACE_SECONDS)
