"""Which replica should lead: the preferred one of the group, and another before a stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from dledger.clock import Clock
from dledger.errors import DLedgerError

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0
HAND_OVER_S = 0.5


class LeadershipControl(Protocol):
    """What is needed of `RaftNode`."""

    @property
    def is_serving(self) -> bool:
        """Whether this replica leads and may serve."""
        ...

    @property
    def commit_index(self) -> int:
        """The highest index known to be committed."""
        ...

    def peer_progress(self) -> dict[str, dict[str, int]]:
        """On a leader: how far each follower is."""
        ...

    async def transfer_leadership(
        self, target: str | None = None, *, timeout_s: float = ...
    ) -> str | None:
        """Hands the leadership to a follower."""
        ...


class PreferredLeader:
    """Decides when the leadership goes back to the preferred replica. Pure.

    The replica must have been connected and caught up without interruption for a while: one that
    comes and goes would otherwise move the leadership each time. Caught up means: it has what was
    committed at the look before, since under load it never has everything.
    """

    def __init__(self, replica_id: str, stable_s: float) -> None:
        self._replica_id = replica_id
        self._stable_s = stable_s
        self._stable_since: float | None = None
        self._committed_before: int | None = None

    def observe(
        self, now: float, *, commit_index: int, progress: dict[str, dict[str, int]]
    ) -> bool:
        """Takes a leader's look at its followers; True if it should hand over now.

        Args:
            now: Monotonic time.
            commit_index: Of the leader.
            progress: `RaftNode.peer_progress`; empty on a replica that does not lead.
        """
        theirs = progress.get(self._replica_id)
        wanted, self._committed_before = self._committed_before, commit_index
        if wanted is None:
            wanted = commit_index
        if theirs is None or not theirs["connected"] or theirs["match_index"] < wanted:
            self._stable_since = None
            return False
        if self._stable_since is None:
            self._stable_since = now
        if now - self._stable_since < self._stable_s:
            return False
        self._stable_since = None  # should it fail, the next attempt waits as long
        return True


async def prefer_leader(
    raft: LeadershipControl,
    replica_id: str,
    clock: Clock,
    stable_s: float,
    has_room: Callable[[str], Awaitable[bool]],
) -> None:
    """Hands the leadership to the preferred replica whenever it is ready. Runs for ever."""
    preferred = PreferredLeader(replica_id, stable_s)
    while True:
        await asyncio.sleep(min(LOOK_INTERVAL_S, stable_s))
        progress = raft.peer_progress() if raft.is_serving else {}
        if not preferred.observe(
            clock.monotonic(), commit_index=raft.commit_index, progress=progress
        ):
            continue
        # One with a full disk would hand it on again at once.
        if await has_room(replica_id) and raft.is_serving:
            try:
                await raft.transfer_leadership(replica_id)
            except DLedgerError as error:
                logger.info("leadership stays: preferred=%s reason=%s", replica_id, error)


async def hand_over(raft: LeadershipControl, timeout_s: float = HAND_OVER_S) -> None:
    """Before a planned stop: lets a follower lead, if there is one that is ready in time."""
    if raft.is_serving and raft.peer_progress():
        # Whatever happens to the replica meanwhile: a stop never waits for longer.
        with contextlib.suppress(DLedgerError, TimeoutError):
            async with asyncio.timeout(2 * timeout_s):
                await raft.transfer_leadership(timeout_s=timeout_s)
