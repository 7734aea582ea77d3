"""What the replicated log asks of the disk, of the state machine and of the network.

`store.CommitLog` is the disk, `broker.BrokerStateMachine` the state machine; neither is imported
here, and neither imports this package. The protocols are the contract.

Words of durability: *written* is given to the operating system, *durable* survives a power cut of
this node, *committed* is durable on a majority, *applied* is visible in this node's state machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from dledger.errors import DLedgerError, StoreError

Buffer = bytes | bytearray | memoryview
ProposalCallback = Callable[[object, DLedgerError | None], None]


class LogEntry(Protocol):
    """One entry of the log. `record` is header and body exactly as they are stored."""

    @property
    def index(self) -> int: ...  # noqa: D102

    @property
    def term(self) -> int: ...  # noqa: D102

    @property
    def body(self) -> Buffer: ...  # noqa: D102

    @property
    def record(self) -> Buffer: ...  # noqa: D102


class LogStorage(Protocol):
    """The log on one replica's disk, with the term and the vote beside it.

    Concurrency: every method is called on the event loop; syncing happens behind it.
    """

    record_header_bytes: int

    @property
    def first_index(self) -> int:
        """Index of the first entry held; 1 for an empty log."""
        ...

    @property
    def last_index(self) -> int:
        """Index of the last entry written; 0 for an empty log."""
        ...

    @property
    def last_term(self) -> int:
        """Term of the last entry written; 0 for an empty log."""
        ...

    @property
    def durable_index(self) -> int:
        """Every entry up to here survives a power cut."""
        ...

    @property
    def offset_end(self) -> int:
        """Physical offset at which the next record will begin."""
        ...

    @property
    def term(self) -> int:
        """The durable current term."""
        ...

    @property
    def voted_for(self) -> str | None:
        """Whom this replica voted for in `term`."""
        ...

    def term_at(self, index: int) -> int | None:
        """Returns the term of the entry, or None if it is not held."""
        ...

    def reserve(self, size_bytes: int) -> None:
        """Makes room for that many record bytes, or raises DiskFullError with nothing changed."""
        ...

    def append(self, index: int, term: int, body: Buffer) -> None:
        """Writes one entry after the last; it is not durable yet."""
        ...

    def append_records(self, entries: Sequence[Any]) -> None:
        """Writes entries as they were received; they are not durable yet."""
        ...

    def decode_records(self, data: memoryview) -> Sequence[Any]:
        """Returns the entries in received bytes, each checksum verified."""
        ...

    def read_entries(self, first: int, count_max: int, bytes_max: int) -> Sequence[Any]:
        """Returns consecutive entries from `first`: at least one if it is held."""
        ...

    def read_records(self, first: int, bytes_max: int) -> tuple[Sequence[Buffer], int]:
        """Returns the stored bytes of consecutive entries from `first`, and the last index."""
        ...

    def truncate_from(self, index: int) -> None:
        """Drops the entry and all after it. Durable on return."""
        ...

    def save_vote(self, term: int, voted_for: str | None) -> None:
        """Stores term and vote. Durable on return."""
        ...

    @property
    def members(self) -> bytes | None:
        """What `save_members` stored last; None if nothing ever was."""
        ...

    def save_members(self, content: bytes) -> None:
        """Stores who belongs to the group. Durable on return."""
        ...

    def subscribe_durable(self, callback: Callable[[int], None]) -> None:
        """Calls back on the event loop whenever `durable_index` rises."""
        ...

    def subscribe_failure(self, callback: Callable[[StoreError], None]) -> None:
        """Calls back on the event loop when the disk failed and the replica must stop."""
        ...

    def request_sync(self) -> None:
        """Asks for a sync of everything written so far."""
        ...


class StateMachine(Protocol):
    """What committed entries do."""

    @property
    def applied_index(self) -> int:
        """The last index whose effects are stored; 0 at first."""
        ...

    def apply(self, entries: Sequence[Any]) -> Sequence[object]:
        """Applies consecutive entries in one transaction together with the applied index.

        Entries whose body begins with a byte below 16 belong to Raft: they only move the index.

        Returns:
            One result per entry.

        Raises:
            DiskFullError: Nothing was applied; the same call may be made again.
        """
        ...


class StampedCommand(Protocol):
    """A command that contains its own place in the log."""

    size_bytes: int

    def encode(self, body_offset: int) -> Buffer:
        """Returns the command, exactly `size_bytes` long.

        Called once, at the moment the entry gets its place.

        Args:
            body_offset: Physical offset of the command's first byte.
        """
        ...


class RaftListener(Protocol):
    """Who wants to know about leadership. Called on the event loop."""

    def on_serving(self, term: int) -> None:
        """This replica leads and has applied everything committed before its term."""
        ...

    def on_stopped_serving(self) -> None:
        """This replica no longer serves as leader."""
        ...

    def on_leader_changed(self, leader_id: str | None, term: int) -> None:
        """The known leader changed; None while there is none."""
        ...


class Identity(NamedTuple):
    """Who a replica says it is.

    Attributes:
        replica_id: Its name.
        incarnation: Which life of it.
        directory_id: Of its data directory: a random number made with it.
        raft_address: Where it is reached; empty if it was not told.
    """

    replica_id: str
    incarnation: int = 0
    directory_id: str = ""
    raft_address: str = ""


class PeerPlace(NamedTuple):
    """Where a peer is, and which life of it is expected there."""

    incarnation: int
    raft_address: str


class TransportReceiver(Protocol):
    """The node behind a transport. Called on the event loop."""

    @property
    def identity(self) -> Identity:
        """Who this replica is."""
        ...

    def admit(self, peer: Identity) -> None:
        """Checks whether a replica may talk to this one; raises a ReplicationError if not."""
        ...

    def on_refused(self, peer_id: str, error: DLedgerError) -> None:
        """A peer does not talk to this replica: PeerRefusedError for now, others for good."""
        ...

    def on_message(self, peer_id: str, message: dict[str, Any]) -> None:
        """A message of a peer, in the order in which it was sent."""
        ...

    def on_peer_up(self, peer_id: str) -> None:
        """Messages can be sent to the peer from now on."""
        ...

    def on_peer_down(self, peer_id: str, *, reset: bool) -> None:
        """Messages under way to or from the peer are lost.

        Args:
            reset: The peer's side closed the connection: its process has probably died.
        """
        ...


class RaftTransport(Protocol):
    """Carries messages between the replicas of one group: in order, at most once, maybe never."""

    async def start(self, receiver: TransportReceiver, peers: Mapping[str, PeerPlace]) -> None:
        """Begins to listen and to connect to the peers."""
        ...

    def set_peers(self, peers: Mapping[str, PeerPlace]) -> None:
        """Connects to these from now on, and to no others."""
        ...

    async def stop(self) -> None:
        """Closes everything."""
        ...

    def send(self, peer_id: str, message: dict[str, Any]) -> bool:
        """Sends a message; False if it was dropped. Never blocks."""
        ...

    def buffered_bytes(self, peer_id: str) -> int:
        """Bytes given to `send` that the operating system has not taken yet."""
        ...


class SnapshotReader(Protocol):
    """A complete snapshot of the state, being sent. It never changes."""

    @property
    def applied_index(self) -> int:
        """The entry that it is the state after."""
        ...

    @property
    def size_bytes(self) -> int:
        """Its length."""
        ...

    @property
    def crc(self) -> int:
        """Its CRC-32."""
        ...

    def read(self, position: int, size_bytes: int) -> bytes:
        """Returns a piece; shorter only at the end."""
        ...

    def close(self) -> None:
        """Lets go of it."""
        ...


class SnapshotWriter(Protocol):
    """A snapshot being received."""

    @property
    def position(self) -> int:
        """Bytes stored so far."""
        ...

    def write(self, data: bytes) -> None:
        """Stores the next piece. Raises DiskFullError with the piece not stored."""
        ...

    def abort(self) -> None:
        """Throws away what was received."""
        ...


class SnapshotExchange(Protocol):
    """The snapshots of one replica, as the replicated log uses them. On the event loop."""

    @property
    def catch_up_index(self) -> int:
        """How far the state may be ahead of the log, which still follows; 0: not at all."""
        ...

    def open_newest(self) -> SnapshotReader | None:
        """Returns the newest snapshot, None if there is none."""
        ...

    def receive(self, applied_index: int, size_bytes: int, crc: int) -> SnapshotWriter:
        """Begins to receive one; an earlier unfinished one is given up."""
        ...

    def install(
        self,
        writer: SnapshotWriter,
        record: bytes,
        may_install: Callable[[], bool],
        done: Callable[[int | None, DLedgerError | None], None],
    ) -> None:
        """Replaces log and state: the log by one that begins with `record`.

        Args:
            writer: Holds a whole snapshot.
            record: The first entry of the new log, as stored.
            may_install: Asked right before the change; if it says no, nothing is changed.
            done: Called with the applied index of the state as it is then, or with an error and
                nothing changed.

        Raises, here or as a failure of the replica: StoreError if the disk failed.

        Durability: a crash at any moment leaves the old log and state or the new ones.
        """
        ...


class EngineHost(Protocol):
    """The node around the engine."""

    def buffered_bytes(self, peer_id: str) -> int:
        """Bytes to the peer that the network has not taken."""
        ...

    def send(self, peer_id: str, message: dict[str, Any]) -> bool:
        """Sends a message."""
        ...

    def apply(self, entries: Sequence[Any]) -> bool:
        """Applies committed entries and answers their proposals; False: not now, try again."""
        ...

    def state_changed(self) -> None:
        """Role, term or leader may have changed."""
        ...

    def members_changed(self) -> None:
        """Another configuration counts, or is known to be committed."""
        ...

    def open_snapshot(self) -> SnapshotReader | None:
        """Returns the newest snapshot of the state, None if there is none."""
        ...

    def receive_snapshot(self, applied_index: int, size_bytes: int, crc: int) -> SnapshotWriter:
        """Begins to receive a snapshot."""
        ...

    def install_snapshot(
        self,
        writer: SnapshotWriter,
        record: bytes,
        done: Callable[[DLedgerError | None], None],
    ) -> None:
        """Replaces log and state by a received snapshot and the first entry of a log."""
        ...

    def wake(self) -> None:
        """Asks for another tick soon."""
        ...

    def wake_within(self, delay_s: float) -> None:
        """Asks for another tick after so long at the latest."""
        ...

    def awaits_followers(self) -> bool:
        """Whether something other than a commit waits for answers of followers."""
        ...
