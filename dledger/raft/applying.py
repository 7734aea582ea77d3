"""When committed entries are applied, and when followers are told that they are committed.

The leader applies at once: producers wait for it. A follower applies at once after a pause, and
under load what has gathered in `gather_ms`, in one transaction: each costs about as much as the
effects of a hundred messages. Likewise a leader that has no entries to send tells its followers at
once what is committed, and again only after `gather_ms`: entries that come meanwhile carry it.
Nothing is acknowledged later by that, for a follower confirms what is durable, applied or not.
"""

from __future__ import annotations

from dledger.errors import invariant
from dledger.raft.elections import Elections
from dledger.raft.upstream import LEADER


class Stride:
    """Something that is done at once, but not again before a pause has passed. Pure.

    Attributes:
        due_at: From when it may be done again.
    """

    __slots__ = ("_pause_s", "due_at")

    def __init__(self, pause_ms: int) -> None:
        self._pause_s = pause_ms / 1000
        self.due_at = float("-inf")

    def done(self, now: float) -> None:
        """Notes that it was done."""
        self.due_at = now + self._pause_s


class Applying(Elections):
    """The part of the engine that applies what is committed."""

    _SyncObj__raftCommitIndex: int
    _SyncObj__raftLastApplied: int
    _apply_awaited: bool  # a tick is on its way, or the timer is set for when it is due
    _apply_stride: Stride
    _tell_stride: Stride
    _commit_told: int

    def _SyncObj__applyLogEntries(self) -> bool:
        config = self._config
        applied = self._SyncObj__raftLastApplied
        ready = self._appliable()
        if ready <= applied:
            self._apply_awaited = False
        elif self._apply_due_at() <= self._clock.monotonic():
            count = min(ready - applied, config.apply_count_max)
            entries = self._log.read_entries(applied + 1, count, config.apply_bytes_max)
            invariant(entries, "a committed entry is not in the log", index=applied + 1)
            done = self._host.apply(entries)
            if done:
                self._SyncObj__raftLastApplied = entries[-1].index
            if done and entries[-1].index < ready:
                self._host.wake()
            else:
                self._apply_stride.done(self._clock.monotonic())
                self._apply_awaited = not done
        # The library would broadcast after each application; entries on their way carry the
        # commit index, and `_tell_commit_if_idle` does it when there are none.
        return False

    def _appliable(self) -> int:
        """Returns how far entries may be applied.

        Never ahead of the own disk: after a power cut the state machine must not know entries that
        the log lost.
        """
        return int(min(self._SyncObj__raftCommitIndex, self._log.durable_index))

    def _apply_due_at(self) -> float:
        """Returns when entries that may be applied are."""
        leads = self._SyncObj__raftState == LEADER
        return float("-inf") if leads else self._apply_stride.due_at

    def _wake_to_apply(self) -> None:
        """Sees to it that entries which may be applied now will be."""
        if not self._apply_awaited and self._appliable() > self._SyncObj__raftLastApplied:
            self._apply_awaited = True
            self._host.wake()

    def _advance_commit(self, index: int) -> None:
        self._SyncObj__leaderCommitIndex = index
        if index > self._SyncObj__raftCommitIndex:
            self._SyncObj__raftCommitIndex = index
            self._wake_to_apply()

    def _is_commit_untold(self) -> bool:
        """Whether there is a new commit index and no entries are under way to carry it."""
        commit = self._SyncObj__raftCommitIndex
        return bool(commit > self._commit_told and commit == self._log.last_index)

    def _tell_commit_if_idle(self) -> None:
        """Broadcasts a new commit index when nothing else carries it."""
        if self._is_commit_untold() and self._tell_stride.due_at <= self._clock.monotonic():
            self._SyncObj__sendAppendEntries()

    def next_deadline(self) -> float:
        """Returns the monotonic time of the next thing to do without a message."""
        if self._SyncObj__raftState == LEADER:
            deadline = float(self._SyncObj__newAppendEntriesTime)
            return min(deadline, self._tell_stride.due_at) if self._is_commit_untold() else deadline
        deadline = float(self._SyncObj__raftElectionDeadline)
        if self._appliable() > self._SyncObj__raftLastApplied:
            return min(deadline, self._apply_stride.due_at)
        return deadline
