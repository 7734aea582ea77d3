"""Settings of one replica's Raft node."""

from __future__ import annotations

from dataclasses import dataclass

from dledger.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RaftConfig:
    """Timing and limits. The defaults suit replicas within a few milliseconds of each other.

    Attributes:
        heartbeat_ms: A leader without entries to send reports itself this often.
        commit_notice_ms: And tells of a commit after so long, unless entries have told of it.
        apply_delay_ms: A follower applies what it learns to be committed so much later, together.
        election_timeout_min_ms: A follower waits at least this long for its leader.
        election_timeout_max_ms: and at most this long; drawn anew each time.
        check_quorum_ms: A leader that no majority answered for this long steps down.
        reset_election_max_ms: A closed connection to the leader lets a follower ask for votes
            after a random time up to this.
        proposal_timeout_ms: A proposal without a majority by then ends as indefinite.
        retransmit_ms: Without progress of a follower for this long, entries are sent again.
        entry_bytes_max: Largest command.
        append_bytes_max: Entries sent in one message, unless a single one is larger.
        window_bytes: Entries on the way to one follower, not yet confirmed.
        pending_bytes_max: Proposals under way on the leader; more are refused.
        apply_bytes_max: Entries applied in one turn of the loop.
        apply_count_max: The same in entries.
    """

    heartbeat_ms: int = 75
    commit_notice_ms: int = 5
    apply_delay_ms: int = 5
    election_timeout_min_ms: int = 300
    election_timeout_max_ms: int = 600
    check_quorum_ms: int = 900
    reset_election_max_ms: int = 60
    proposal_timeout_ms: int = 5_000
    retransmit_ms: int = 1_000
    entry_bytes_max: int = 6 * 1024 * 1024
    append_bytes_max: int = 1024 * 1024
    window_bytes: int = 8 * 1024 * 1024
    pending_bytes_max: int = 64 * 1024 * 1024
    apply_bytes_max: int = 4 * 1024 * 1024
    apply_count_max: int = 512

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ConfigError(name, value, "must be greater than 0")
        if self.election_timeout_min_ms <= 3 * self.heartbeat_ms:
            raise ConfigError(
                "election_timeout_min_ms",
                self.election_timeout_min_ms,
                f"must exceed three heartbeats ({3 * self.heartbeat_ms} ms)",
            )
        if self.election_timeout_max_ms <= self.election_timeout_min_ms:
            raise ConfigError(
                "election_timeout_max_ms",
                self.election_timeout_max_ms,
                "must exceed election_timeout_min_ms",
            )
        if self.check_quorum_ms <= self.election_timeout_min_ms:
            raise ConfigError(
                "check_quorum_ms",
                self.check_quorum_ms,
                "must exceed election_timeout_min_ms",
            )
