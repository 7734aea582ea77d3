"""The address that the leader of a group takes over from the one before it.

Official clients know a broker by one address and look for a new one every 30 s at most: when the
leader dies, every retry goes to the address of a dead process. So a group may have an address that
belongs to whoever leads. The leader listens there besides its own address and says so when it
registers; nameservers then give that address to clients that are not ours. A client's next
connection finds the new leader.

That works where the address can move: between processes of one machine, or with a virtual address
that moves between machines. Where it cannot be bound, the leader registers without it, and clients
get its own address, as ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from broker.config import parse_address
from broker.tasks import Tasks
from dledger.errors import ConfigError
from dledger.listening import close_listener
from dledger.remoting.server import RemotingServer

logger = logging.getLogger(__name__)

# The leader before us may be about to notice that it is none; a killed one is gone already.
RETRY_S = 0.05
RETRY_MAX_S = 2.0


class SharedAddress:
    """Listens on a group's shared address while this replica leads. Satisfies `RaftListener`."""

    def __init__(self, address: str | None, server: RemotingServer, tasks: Tasks) -> None:
        """Prepares it.

        Args:
            address: `host:port`; without one, nothing is ever done.
            server: Takes the connections.
            tasks: Owner of the attempts to listen.
        """
        self._address = address or ""
        self._server = server
        self._tasks = tasks
        self._on_changed: Callable[[], None] = lambda: None
        self._listener: asyncio.Server | None = None
        # Not `raft.is_serving`: that pauses while a transfer is tried, and may then go on.
        self._is_wanted = False
        self._is_trying = False

    def on_changed(self, callback: Callable[[], None]) -> None:
        """Sets what is called when this replica has begun or ceased to listen."""
        self._on_changed = callback

    @property
    def held(self) -> str:
        """The address while this replica listens on it, otherwise ""."""
        return self._address if self._listener is not None else ""

    # --- RaftListener -----------------------------------------------------------------------

    def on_serving(self, term: int) -> None:
        """Begins to listen, as soon as the address is free."""
        self._is_wanted = True
        if self._address and self._listener is None and not self._is_trying:
            self._is_trying = True
            self._tasks.spawn(self._take(), "shared-address")

    def on_stopped_serving(self) -> None:
        """Leaves the address to the next leader. Open connections stay and are forwarded."""
        self._is_wanted = False
        if self._listener is not None:
            close_listener(self._listener)
            self._listener = None
            logger.info("shared address left: address=%s", self._address)
            self._on_changed()

    def on_leader_changed(self, leader_id: str | None, term: int) -> None:
        """Does nothing: what counts is whether this replica serves."""

    # --- inside -----------------------------------------------------------------------------

    async def _take(self) -> None:
        host, port = parse_address(self._address, "shared_address")
        pause_s = RETRY_S
        told = False
        try:
            while self._is_wanted:
                try:
                    listener = await self._server.listen(host, port)
                except ConfigError as error:
                    if not told:
                        told = True
                        logger.warning("shared address not taken yet: reason=%s", error)
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, RETRY_MAX_S)
                    continue
                if not self._is_wanted:
                    close_listener(listener)
                    return
                self._listener = listener
                logger.info("shared address taken: address=%s", self._address)
                self._on_changed()
                return
        finally:
            self._is_trying = False
