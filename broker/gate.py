"""Whether this replica may accept a write right now."""

from __future__ import annotations

import logging
from typing import Protocol

from dledger.errors import DiskFullError, FlowControlError, NotLeaderError

logger = logging.getLogger(__name__)


class LeadershipView(Protocol):
    """What the gate needs to know of Raft; `RaftNode` is one."""

    @property
    def is_serving(self) -> bool:
        """Whether this replica leads and may serve."""
        ...

    @property
    def leader_id(self) -> str | None:
        """The known leader."""
        ...

    @property
    def term(self) -> int:
        """The current term."""
        ...

    @property
    def pending_bytes(self) -> int:
        """Bytes of proposals under way."""
        ...


class WriteGate:
    """Checks leadership, free disk space and the amount of work under way.

    A refusal here is definite: nothing was proposed. Space is looked at about once a second, not
    per write; the log itself refuses what does not fit, so that the look is only there to leave
    room for what follows a write (the state, votes, the process's own log).
    """

    def __init__(
        self, raft: LeadershipView, *, disk_free_min_bytes: int, pending_bytes_max: int
    ) -> None:
        self._raft = raft
        self._disk_free_min_bytes = disk_free_min_bytes
        self._pending_bytes_max = pending_bytes_max
        self._disk_error: str | None = None
        self.free_bytes = 2 * disk_free_min_bytes  # as last looked at; enough before that

    @property
    def is_disk_full(self) -> bool:
        """Whether writes are refused for want of space."""
        return self._disk_error is not None

    @property
    def has_room_to_lead(self) -> bool:
        """Whether there is room for a new file of the log, which leaves twice the minimum."""
        return self.free_bytes >= 2 * self._disk_free_min_bytes

    def check(self) -> None:
        """Raises if a write must be refused.

        Raises:
            NotLeaderError: This replica does not serve as leader.
            DiskFullError: Too little space is left. Reads go on.
            FlowControlError: Too many bytes are on their way to a majority.
        """
        raft = self._raft
        if not raft.is_serving:
            raise NotLeaderError(raft.leader_id, raft.term)
        if self._disk_error is not None:
            raise DiskFullError(self._disk_error)
        if raft.pending_bytes >= self._pending_bytes_max:
            raise FlowControlError(
                f"[OVERLOAD] limits.pending_bytes_max = {self._pending_bytes_max} is reached: "
                f"{raft.pending_bytes} bytes wait for a majority"
            )

    def observe_disk(self, free_bytes: int) -> None:
        """Takes note of the free space of the data directory's file system."""
        self.free_bytes = free_bytes
        if free_bytes < self._disk_free_min_bytes:
            if self._disk_error is None:
                logger.warning(
                    "disk nearly full, writes are refused: free_bytes=%d disk_free_min_bytes=%d",
                    free_bytes,
                    self._disk_free_min_bytes,
                )
            self._disk_error = (
                f"disk full: {free_bytes} bytes are free, store.disk_free_min_bytes = "
                f"{self._disk_free_min_bytes} must remain; writes are refused until there is space"
            )
        elif self._disk_error is not None:
            logger.info("disk has space again, writes are accepted: free_bytes=%d", free_bytes)
            self._disk_error = None
