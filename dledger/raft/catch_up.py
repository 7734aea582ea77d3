"""Followers that need entries which the leader no longer holds: a snapshot, then ordinary appends.

The leader sends a snapshot of its state in pieces, a few at a time, and at the end the first entry
of its log. The follower installs both at once: its log begins with that entry, at the same
physical offset, and its state is that of the snapshot's applied index. It then gets the rest of the
log as ordinary appends and applies what lies behind the snapshot.

Rule (f): nothing of this moves the follower's commit index but the installation itself, and that
only to an entry that is committed: the first of the leader's log always is.

Dropping the follower's log is safe because it happens only when the leader's first entry, which is
committed, is not in it (`_on_snapshot_end`): whatever the follower holds from that index on was
never committed, and what it holds before is part of the snapshot. Before a leader sends a snapshot
it therefore asks whether its first entry is there (`_ask_floor`).
"""

from __future__ import annotations

import logging
import zlib
from typing import Any

from pysyncobj.node import Node

from dledger.errors import DiskFullError, DLedgerError, invariant
from dledger.raft.configuration import (
    Configuration,
    decode_configuration,
    encode_configuration,
)
from dledger.raft.elections import Elections
from dledger.raft.protocols import SnapshotReader, SnapshotWriter
from dledger.raft.upstream import LEADER

logger = logging.getLogger(__name__)

PIECE_BYTES = 256 * 1024
PIECES_IN_FLIGHT = 8


class OutgoingSnapshot:
    """A snapshot on its way to one follower."""

    __slots__ = ("confirmed", "last_progress", "reader", "sent")

    def __init__(self, reader: SnapshotReader, now: float) -> None:
        self.reader = reader
        self.confirmed = 0  # bytes that the follower has
        self.sent = 0  # bytes on their way or there; one more than the size: the end as well
        self.last_progress = now

    def next_piece(self) -> int | None:
        """Returns where the next piece begins; the size for the end; None while it must wait."""
        size = self.reader.size_bytes
        if self.sent < size:
            in_flight = self.sent - self.confirmed
            return self.sent if in_flight < PIECE_BYTES * PIECES_IN_FLIGHT else None
        return size if self.confirmed == size and self.sent == size else None

    def advanced(self, position: int, now: float) -> None:
        """Takes the follower's word for how much it has; less than before: it began anew."""
        if position != self.confirmed:
            self.last_progress = now
        if position < self.confirmed or position > self.sent:
            self.sent = position
        self.confirmed = position

    def restart(self, now: float) -> None:
        """Sends again what is not confirmed."""
        self.sent = self.confirmed
        self.last_progress = now


class IncomingSnapshot:
    """A snapshot that arrives."""

    __slots__ = ("configuration", "installing", "key", "writer")

    def __init__(self, key: tuple[int, int, int], writer: SnapshotWriter) -> None:
        self.key = key  # applied index, size, checksum
        self.writer = writer
        self.installing = False
        self.configuration: Configuration | None = None  # the leader's, with the end


class CatchUp(Elections):
    """The part of the engine that exchanges snapshots."""

    _round: int
    _verified: int
    _outgoing: dict[str, OutgoingSnapshot]
    _incoming: IncomingSnapshot | None
    _ack: dict[str, Any] | None

    # --- the leader's side -----------------------------------------------------------------

    def _ask_floor(self, node: Node) -> None:
        """Asks next whether the follower holds the first entry of this log."""
        progress = self._progress[node.id]
        progress.floor_asked = self._log.first_index
        self._SyncObj__raftNextIndex[node] = self._log.first_index + 1

    def _needs_snapshot(self, node: Node, next_index: int) -> bool:
        """Whether a follower that asked for this entry must get a snapshot. Begins sending it."""
        first = self._log.first_index
        if next_index > first or first == 1:
            return False
        if next_index > self._progress[node.id].floor_asked:
            # Not asked yet, or not answered. One that lacks an earlier first entry lacks this one
            # as well: under a narrow link the front may move faster than answers come.
            self._ask_floor(node)
            return False
        reader = self._host.open_snapshot()
        if reader is None or reader.applied_index < first:
            logger.warning("follower %s needs a snapshot, and there is none", node.id)
            if reader is not None:
                reader.close()
            self._ask_floor(node)
            return False
        logger.info(
            "sending a snapshot: follower=%s applied_index=%d size_bytes=%d",
            node.id,
            reader.applied_index,
            reader.size_bytes,
        )
        self._drop_outgoing(node.id)
        self._outgoing[node.id] = OutgoingSnapshot(reader, self._clock.monotonic())
        return True

    def _snapshot_progress(self, peer_id: str) -> dict[str, int]:
        """Returns which snapshot is on its way to a follower, and how much of it is there."""
        outgoing = self._outgoing.get(peer_id)
        if outgoing is None:
            return {"snapshot_index": 0, "snapshot_bytes": 0}
        index = outgoing.reader.applied_index
        return {"snapshot_index": index, "snapshot_bytes": outgoing.confirmed}

    def _drop_outgoing(self, peer_id: str | None = None) -> None:
        for found in [peer_id] if peer_id is not None else list(self._outgoing):
            outgoing = self._outgoing.pop(found, None)
            if outgoing is not None:
                outgoing.reader.close()

    def _pump_snapshot(self, node: Node, *, heartbeat: bool = False) -> None:
        """Sends as many pieces as the follower may have on their way."""
        outgoing = self._outgoing[node.id]
        now = self._clock.monotonic()
        if heartbeat:
            silent_ms = (now - outgoing.last_progress) * 1000
            if silent_ms >= self._config.retransmit_ms and not self._host.buffered_bytes(node.id):
                # Not while the network has not even taken it all: over a slow link the same pieces
                # would queue up again and again, before any new one.
                outgoing.restart(now)
            # Also without anything to send: the follower must hear of its leader.
            self._send_piece(node, outgoing, outgoing.confirmed, b"")
        while (position := outgoing.next_piece()) is not None:
            if position == outgoing.reader.size_bytes:
                if self._send_end(node, outgoing):
                    outgoing.sent += 1
                return
            data = outgoing.reader.read(position, PIECE_BYTES)
            if not data or not self._send_piece(node, outgoing, position, data):
                return
            outgoing.sent = position + len(data)

    def _send_piece(
        self, node: Node, outgoing: OutgoingSnapshot, position: int, data: bytes
    ) -> bool:
        reader = outgoing.reader
        return self._host.send(
            node.id,
            {
                "type": "snapshot_piece",
                "term": self._SyncObj__raftCurrentTerm,
                "round": self._round,
                "applied_index": reader.applied_index,
                "size": reader.size_bytes,
                "crc": reader.crc,
                "position": position,
                "piece_crc": zlib.crc32(data),
                "records": [data],
            },
        )

    def _send_end(self, node: Node, outgoing: OutgoingSnapshot) -> bool:
        first = self._log.first_index
        if first > outgoing.reader.applied_index:
            # Cannot be: the log keeps what the newest snapshot needs. Begin with a newer one.
            self._drop_outgoing(node.id)
            self._ask_floor(node)
            return False
        records, _ = self._log.read_records(first, 1)
        # The newest one that is committed; what comes later is in the log that follows.
        self._settle_configuration()
        return self._host.send(
            node.id,
            {
                "type": "snapshot_end",
                "configuration": encode_configuration(self._membership.committed),
                "term": self._SyncObj__raftCurrentTerm,
                "round": self._round,
                "applied_index": outgoing.reader.applied_index,
                "crc": outgoing.reader.crc,
                "records": records,
            },
        )

    def _on_snapshot_reply(self, node: Node, message: dict[str, Any]) -> None:
        if message["term"] > self._SyncObj__raftCurrentTerm:
            self._step_down(message["term"])
            return
        if (
            self._SyncObj__raftState != LEADER
            or message["term"] != self._SyncObj__raftCurrentTerm
            or node.id not in self._progress
        ):
            return
        now = self._clock.monotonic()
        progress = self._progress[node.id]
        self._heard_from(node, message["round"], now)
        outgoing = self._outgoing.get(node.id)
        if outgoing is None or message["applied_index"] != outgoing.reader.applied_index:
            return
        if message["first_index"]:
            # Installed: the follower's log holds our first entry (of then), durably.
            logger.info("snapshot installed: follower=%s", node.id)
            self._drop_outgoing(node.id)
            progress.restart(now)
            progress.confirmed(message["first_index"], now)
            self._SyncObj__raftNextIndex[node] = message["first_index"] + 1
            self._host.wake()
            return
        outgoing.advanced(message["position"], now)
        self._pump_snapshot(node)

    def _heard_from(self, node: Node, number: int, now: float) -> None:
        """Notes that a follower answered this leader."""
        self._SyncObj__lastResponseTime[node] = now
        progress = self._progress[node.id]
        progress.round = max(progress.round, number)

    # --- the follower's side ---------------------------------------------------------------

    def _on_snapshot_piece(self, node: Node, message: dict[str, Any]) -> None:
        if message["term"] < self._SyncObj__raftCurrentTerm:
            self._reply_snapshot(node, message, position=0)
            return
        self._follow(node, message["term"])
        try:
            data = message["payload"]
            if self._incoming is None and (message["position"] or not data):
                # Of one that is installed already, or whose beginning was lost.
                self._reply_snapshot(node, message, position=0)
                return
            incoming = self._receiving(message)
            fits = data and message["position"] == incoming.writer.position
            if fits and not incoming.installing and zlib.crc32(data) == message["piece_crc"]:
                incoming.writer.write(data)
        except DiskFullError as error:
            logger.warning("snapshot not stored: %s", error)
            self._drop_incoming()
            return
        self._reply_snapshot(node, message, position=incoming.writer.position)

    def _receiving(self, message: dict[str, Any]) -> IncomingSnapshot:
        key = (message["applied_index"], message["size"], message["crc"])
        incoming = self._incoming
        if incoming is not None and (incoming.installing or incoming.key == key):
            return incoming
        self._drop_incoming()
        logger.info("receiving a snapshot: applied_index=%d size_bytes=%d", key[0], key[1])
        incoming = self._incoming = IncomingSnapshot(key, self._host.receive_snapshot(*key))
        return incoming

    def _drop_incoming(self) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming is not None and not incoming.installing:
            incoming.writer.abort()

    def _on_snapshot_end(self, node: Node, message: dict[str, Any]) -> None:
        if message["term"] < self._SyncObj__raftCurrentTerm:
            self._reply_snapshot(node, message, position=0)
            return
        self._follow(node, message["term"])
        [first] = self._log.decode_records(memoryview(message["payload"]))
        log = self._log
        if log.term_at(first.index) == first.term:
            # Nothing has to be dropped after all; appends will do.
            if log.durable_index >= first.index:
                self._drop_incoming()
                self._reply_snapshot(node, message, position=0, first_index=first.index)
            return
        incoming = self._incoming
        if incoming is None or incoming.installing:
            return
        applied_index, size, crc = incoming.key
        if (
            (applied_index, crc) != (message["applied_index"], message["crc"])
            or incoming.writer.position != size
            or first.index <= self._SyncObj__raftCommitIndex
            or first.index > applied_index
        ):
            self._reply_snapshot(node, message, position=incoming.writer.position)
            return
        incoming.configuration = decode_configuration(message["configuration"])
        incoming.installing = True
        record = bytes(message["payload"])

        def done(error: DLedgerError | None) -> None:
            self._incoming = None
            if error is not None:
                logger.warning("snapshot not installed: %s", error)
                self._reply_snapshot(node, message, position=0)
                return
            self._reply_snapshot(node, message, position=0, first_index=first.index)

        self._host.install_snapshot(incoming.writer, record, done)

    def close_snapshots(self) -> None:
        """Lets go of what is being sent and received."""
        self._drop_outgoing()
        self._drop_incoming()

    def may_install(self, record: bytes) -> bool:
        """Whether the log still has to give way to one that begins with this record.

        Meanwhile another leader may have sent entries.
        """
        [first] = self._log.decode_records(memoryview(record))
        held = self._log.term_at(first.index) == first.term
        incoming = self._incoming
        if held or first.index <= self._SyncObj__raftCommitIndex or incoming is None:
            return False
        if incoming.configuration is not None:
            # Before the log is dropped. It is committed, so it counts whatever comes of this; and
            # of what this log holds beyond the commit index nothing can be committed any more: a
            # change of its own would otherwise pass for a committed one behind the new log's front.
            self._membership.install(incoming.configuration)
            self._members_changed()
        return True

    def installed(self, applied_index: int) -> None:
        """Takes note that log and state were replaced."""
        first = self._log.first_index
        invariant(
            first == self._log.last_index <= applied_index,
            "the log after an installation is not its first entry",
            first_index=first,
            last_index=self._log.last_index,
            applied_index=applied_index,
        )
        self._SyncObj__raftLastApplied = applied_index
        self._SyncObj__raftCommitIndex = first
        self._verified = 0
        self._ack = None

    def _reply_snapshot(
        self, node: Node, message: dict[str, Any], *, position: int, first_index: int = 0
    ) -> None:
        self._host.send(
            node.id,
            {
                "type": "snapshot_reply",
                "term": self._SyncObj__raftCurrentTerm,
                "round": message["round"],
                "applied_index": message["applied_index"],
                "position": position,
                "first_index": first_index,
            },
        )

    def _follow(self, node: Node, term: int) -> None:
        raise NotImplementedError
