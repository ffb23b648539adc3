"""HTTP: what the skew audit has found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter

from homeostat.features.audit.auditor import summary
from homeostat.features.audit.auditors import Auditors


def routes(auditors: Callable[[], Auditors]) -> APIRouter:
    router = APIRouter(prefix="/v1/pipelines/{pipeline}/audit", tags=["skew audit"])

    @router.get("")
    async def audit(pipeline: str) -> dict[str, Any]:
        """How many served vectors were folded anew, and those that came out otherwise."""
        return summary(auditors().of(pipeline))

    return router
