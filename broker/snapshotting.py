"""Takes snapshots of the state, now and then and on request, in the maintenance thread."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from broker.maintenance import Maintenance
from broker.stores import Stores
from dledger.errors import DiskFullError
from store.snapshots import SnapshotInfo

logger = logging.getLogger(__name__)

_SYNC_POLL_S = 0.05


class Snapshotter:
    """Makes snapshots; one at a time, further requests wait for their turn."""

    def __init__(self, stores: Stores, maintenance: Maintenance) -> None:
        self._stores = stores
        self._maintenance = maintenance
        self._turn = asyncio.Lock()

    async def run(self, interval_s: float) -> None:
        """Takes a snapshot now and then, if anything was applied since the last. For ever."""
        while True:
            await asyncio.sleep(interval_s)
            newest = self._stores.snapshots.newest
            applied = self._stores.store.applied_index
            if newest is not None and newest.applied_index == applied:
                continue
            try:
                await self.take()
            except DiskFullError as error:
                logger.warning("no snapshot: %s", error)

    async def take(self) -> SnapshotInfo:
        """Takes a snapshot of what is applied now.

        Raises:
            DiskFullError: No room; the older snapshot stays.
            DiskFailureError: The disk failed.

        Durability: the snapshot, and the log up to its applied index, are synced on return.
        """
        async with self._turn:
            stores = self._stores
            with stores.store.copying() as copy_to:
                work = partial(stores.snapshots.prepare, copy_to)
                info = await self._maintenance.run(work, stores.store.release_pages)
            # With flush "async" entries are applied before they are synced; a snapshot must never
            # know more than the log after a power cut.
            while stores.log.statistics().synced_index < info.applied_index:
                stores.log.request_sync()
                await asyncio.sleep(_SYNC_POLL_S)
            await self._maintenance.run(partial(stores.snapshots.commit, info))
            logger.info(
                "snapshot taken: applied_index=%d size_bytes=%d",
                info.applied_index,
                info.size_bytes,
            )
            return info
