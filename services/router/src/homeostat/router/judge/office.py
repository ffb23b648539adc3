"""Who acts: judges stand by until the lease is theirs, and give it up when anything is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from aiokafka.errors import KafkaError
from sqlalchemy.exc import SQLAlchemyError

from homeostat.router import metrics
from homeostat.router.judge.term import Term
from homeostat.router.settings import JudgeSettings
from homeostat.router.store import Kept, StaleEpoch, Store

logger = logging.getLogger(__name__)

BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 5.0
RELEASE_SECONDS = 2.0


class Office:
    """Campaigns for the lease as long as it runs; ``term`` is there while this judge acts."""

    def __init__(
        self,
        store: Store,
        settings: JudgeSettings,
        *,
        holder: str,
        begin: Callable[[int, Kept], Term],
    ) -> None:
        self._store = store
        self._settings = settings
        self._holder = holder
        self._begin = begin
        self._task: asyncio.Task[None] | None = None
        self.term: Term | None = None
        self.trouble: str | None = "has not reached Postgres yet"

    async def start(self) -> None:
        self._task = asyncio.create_task(self._campaign(), name="campaign")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _campaign(self) -> None:
        backoff = BACKOFF_SECONDS
        is_migrated = False
        while True:
            try:
                if not is_migrated:
                    await self._store.migrate()
                    is_migrated = True
                epoch = await self._store.acquire(self._holder, ttl=self._settings.lease_ttl)
                self.trouble = None
                backoff = BACKOFF_SECONDS
                if epoch is None:
                    await asyncio.sleep(self._settings.lease_renewal.total_seconds())
                else:
                    await self._hold(epoch)
            except (SQLAlchemyError, KafkaError, OSError, StaleEpoch) as error:
                # TimeoutError is an OSError. All of them end the term; the next starts afresh.
                self.trouble = f"{type(error).__name__}: {error}"
                logger.warning("the judge pauses", extra={"error": self.trouble})
                await asyncio.sleep(backoff)
                backoff = min(MAX_BACKOFF_SECONDS, backoff * 2)

    async def _hold(self, epoch: int) -> None:
        """One term: serve while the lease is renewed; whichever fails ends both."""
        logger.info("judge acts", extra={"epoch": epoch, "holder": self._holder})
        metrics.EPOCH.set(epoch)
        self.term = self._begin(epoch, await self._store.load())
        metrics.IS_LEADER.set(1)
        duties = [
            asyncio.create_task(self.term.serve(), name="serve the term"),
            asyncio.create_task(self._renew(epoch), name="renew the lease"),
        ]
        try:
            done, _ = await asyncio.wait(duties, return_when=asyncio.FIRST_COMPLETED)
            for duty in done:
                duty.result()
        finally:
            self.term = None
            metrics.IS_LEADER.set(0)
            for duty in duties:
                duty.cancel()
            await asyncio.gather(*duties, return_exceptions=True)
            await self._release(epoch)

    async def _renew(self, epoch: int) -> None:
        """Renew in time, or fail before the lease is anybody else's."""
        pause = self._settings.lease_renewal.total_seconds()
        patience = self._settings.lease_ttl.total_seconds() - pause
        while True:
            await asyncio.sleep(pause)
            async with asyncio.timeout(patience):
                await self._store.renew(epoch)

    async def _release(self, epoch: int) -> None:
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                await self._store.release(epoch)
        except (SQLAlchemyError, OSError) as error:
            # It expires by itself.
            logger.info("the lease was not released", extra={"error": str(error)})
