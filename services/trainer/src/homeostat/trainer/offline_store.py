"""The features service, asked to put everything that is on the topics into its tables."""

from __future__ import annotations

import httpx
import msgspec

from homeostat.common.errors import HomeostatError, TransientError

COMMIT_SECONDS = 60


class _Committed(msgspec.Struct):
    versions: dict[str, int]


class OfflineStore:
    def __init__(self, features_url: str) -> None:
        self._http = httpx.AsyncClient(base_url=features_url, timeout=COMMIT_SECONDS)

    async def commit(self, pipeline: str) -> dict[str, int]:
        """Table versions that hold everything sent before this call.

        Raises:
            TransientError: the service is away or busy; ask again.
            HomeostatError: it has answered, and the answer is no.
        """
        try:
            response = await self._http.post(f"/v1/pipelines/{pipeline}/offline/commit")
        except httpx.TransportError as error:
            raise TransientError(f"the features service is away: {error!r}") from error
        # A pipeline that was applied a moment ago is unknown there for a moment: 404 may pass.
        if response.status_code in (404, 429) or response.status_code >= 500:
            raise TransientError(f"the features service answers {response.status_code}")
        if response.is_error:
            raise HomeostatError(
                f"the features service refuses to commit {pipeline!r}: {response.text[:500]}"
            )
        try:
            return msgspec.json.decode(response.content, type=_Committed).versions
        except msgspec.DecodeError as error:
            raise HomeostatError(f"the features service answers strangely: {error}") from error

    async def close(self) -> None:
        await self._http.aclose()
