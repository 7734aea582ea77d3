"""Where a follower's log and its leader's agree: pure questions to a log."""

from __future__ import annotations

from collections.abc import Sequence

from dledger.errors import RemoteProtocolError
from dledger.raft.protocols import LogEntry, LogStorage

# How far one reply looks back for the first entry of a conflicting term.
CONFLICT_SCAN_MAX = 4096


def entries_not_held(log: LogStorage, entries: Sequence[LogEntry]) -> Sequence[LogEntry]:
    """Returns the entries from the first that the log does not hold with the same term.

    Same index and same term means same entry, so what comes before need not be written again;
    above all it need not be cut.
    """
    for position, entry in enumerate(entries):
        if entry.index > log.last_index or log.term_at(entry.index) != entry.term:
            return entries[position:]
    return ()


def first_doubtful(log: LogStorage, previous: int, commit_index: int) -> int:
    """Returns the index from which a leader should send, after `previous` did not match.

    Beyond the end of the log it is the next index. In a term that the leader does not have there
    it is the first index of that term, looked for within `CONFLICT_SCAN_MAX`; never a committed
    one, for those are the same everywhere.
    """
    if previous > log.last_index:
        return log.last_index + 1
    if previous < log.first_index:
        return max(commit_index + 1, 2)  # what was dropped here was committed
    floor = max(commit_index + 1, previous - CONFLICT_SCAN_MAX, 2)
    conflicting = log.term_at(previous)
    index = previous
    while index > floor and log.term_at(index - 1) == conflicting:
        index -= 1
    return max(index, 2)


def check_sequence(entries: Sequence[LogEntry], previous: int, term: int) -> None:
    """Raises RemoteProtocolError unless the entries follow `previous` in the leader's terms."""
    last_term = 0
    for offset, entry in enumerate(entries, start=1):
        if entry.index != previous + offset or not last_term <= entry.term <= term:
            raise RemoteProtocolError(
                f"append out of sequence: index {entry.index} term {entry.term} "
                f"after index {previous + offset - 1} term {last_term}"
            )
        last_term = entry.term
