"""An in-memory network for tests and the simulation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from dledger.errors import DLedgerError, ReplicationError
from dledger.raft.messages import MessageDecoder, decode_message, encode_message
from dledger.raft.protocols import PeerPlace, TransportReceiver


class MemoryNetwork:
    """Links between in-memory transports: ordered like TCP, cut and healed at will.

    A message is delivered by `loop.call_later`, so a virtual clock under the loop is enough to
    make a run deterministic. A cut link loses what is under way and closes the connection.
    """

    def __init__(self, delay: Callable[[str, str], float] | None = None) -> None:
        self._delay = delay or (lambda _sender, _receiver: 0.0)
        self._nodes: dict[str, MemoryTransport] = {}
        self._cut: set[tuple[str, str]] = set()
        self._ready_at: dict[tuple[str, str], float] = {}
        self._generation: dict[tuple[str, str], int] = {}
        self._links: set[tuple[str, str]] = set()  # sender, receiver
        self.dropped = 0

    def join(self, transport: MemoryTransport) -> None:
        """Adds a started transport and connects it in both directions."""
        self._nodes[transport.replica_id] = transport
        self.link(transport)

    def link(self, transport: MemoryTransport) -> None:
        """Connects a transport with those that know it and that it knows, and no others."""
        for other in list(self._nodes.values()):
            if other is transport:
                continue
            for one, two in ((transport, other), (other, transport)):
                wanted = self._may_talk(one, two)
                if wanted and (one.replica_id, two.replica_id) not in self._links:
                    self._connect(one, two)
                elif not wanted and (one.replica_id, two.replica_id) in self._links:
                    self._disconnect(one, two.replica_id, reset=False)

    def _may_talk(self, one: MemoryTransport, two: MemoryTransport) -> bool:
        """Does what a hello and its answer do."""
        if not one.expects(two) or one.receiver is None or two.receiver is None:
            return False
        try:
            two.receiver.admit(one.receiver.identity)
        except ReplicationError as error:
            asyncio.get_running_loop().call_soon(one.refused, two.replica_id, error)
            return False
        try:
            one.receiver.admit(two.receiver.identity)
        except ReplicationError:
            return False
        return True

    def leave(self, transport: MemoryTransport, *, reset: bool = True) -> None:
        """Removes a transport; the others see its connections close."""
        self._nodes.pop(transport.replica_id, None)
        for other in list(self._nodes.values()):
            self._disconnect(other, transport.replica_id, reset=reset)
            self._bump(transport.replica_id, other.replica_id)
            self._links.discard((transport.replica_id, other.replica_id))

    def cut(self, sender: str, receiver: str) -> None:
        """Loses everything sent in this direction from now on, and what is under way. Silent."""
        self._cut.add((sender, receiver))
        self._bump(sender, receiver)

    def isolate(self, replica_id: str) -> None:
        """Cuts a replica off in both directions."""
        for other in self._nodes:
            if other != replica_id:
                self.cut(replica_id, other)
                self.cut(other, replica_id)

    def heal(self) -> None:
        """Restores every link; connections that lost messages are made anew."""
        broken, self._cut = self._cut, set()
        for sender, receiver in sorted(broken):
            node = self._nodes.get(sender)
            other = self._nodes.get(receiver)
            if node is not None and other is not None and (sender, receiver) in self._links:
                self._disconnect(node, receiver, reset=False)
                self._connect(node, other)

    def transmit(self, sender: str, receiver: str, message: dict[str, Any]) -> bool:
        """Puts a message on its way."""
        if (sender, receiver) not in self._links:
            return False
        if (sender, receiver) in self._cut:
            self.dropped += 1
            return True
        loop = asyncio.get_running_loop()
        link = (sender, receiver)
        at = max(loop.time() + self._delay(sender, receiver), self._ready_at.get(link, 0.0))
        self._ready_at[link] = at
        buffers = encode_message(message)
        frame = b"".join(bytes(buffer) for buffer in buffers)
        generation = self._generation.get(link, 0)
        loop.call_at(at, self._arrive, link, generation, frame)
        return True

    def _arrive(self, link: tuple[str, str], generation: int, frame: bytes) -> None:
        node = self._nodes.get(link[1])
        if node is None or self._generation.get(link, 0) != generation:
            return
        for header, payload in MessageDecoder().receive_data(frame):
            node.deliver(link[0], decode_message(header, payload))

    def _bump(self, sender: str, receiver: str) -> None:
        self._generation[(sender, receiver)] = self._generation.get((sender, receiver), 0) + 1

    def _connect(self, node: MemoryTransport, other: MemoryTransport) -> None:
        self._links.add((node.replica_id, other.replica_id))
        self._bump(node.replica_id, other.replica_id)
        asyncio.get_running_loop().call_soon(node.up, other.replica_id)

    def _disconnect(self, node: MemoryTransport, peer_id: str, *, reset: bool) -> None:
        self._bump(node.replica_id, peer_id)
        if (node.replica_id, peer_id) in self._links:
            self._links.discard((node.replica_id, peer_id))
            node.down(peer_id, reset=reset)


class MemoryTransport:
    """One replica's end of a `MemoryNetwork`. Satisfies `RaftTransport`."""

    def __init__(self, network: MemoryNetwork, replica_id: str) -> None:
        self.replica_id = replica_id
        self._network = network
        self._peers: dict[str, PeerPlace] = {}
        self.receiver: TransportReceiver | None = None

    async def start(self, receiver: TransportReceiver, peers: Mapping[str, PeerPlace]) -> None:
        """Joins the network."""
        self.receiver = receiver
        self._peers = dict(peers)
        self._network.join(self)

    def set_peers(self, peers: Mapping[str, PeerPlace]) -> None:
        """Talks to these from now on, and to no others."""
        self._peers = dict(peers)
        self._network.link(self)

    def expects(self, other: MemoryTransport) -> bool:
        """Whether another transport belongs to a peer, in the life that is expected of it."""
        place = self._peers.get(other.replica_id)
        found = other.receiver
        return (
            place is not None
            and found is not None
            and place.incarnation == found.identity.incarnation
        )

    def refused(self, peer_id: str, error: DLedgerError) -> None:
        """Reports what a peer says of this replica."""
        if self.receiver is not None:
            self.receiver.on_refused(peer_id, error)

    async def stop(self) -> None:
        """Leaves the network."""
        self.crash()

    def crash(self) -> None:
        """Leaves the network at once, as a killed process does."""
        self.receiver = None
        self._network.leave(self)

    def send(self, peer_id: str, message: dict[str, Any]) -> bool:
        """Sends a message; False if the peer is not there."""
        return self.receiver is not None and self._network.transmit(
            self.replica_id, peer_id, message
        )

    def buffered_bytes(self, peer_id: str) -> int:
        """Always 0: the network takes everything."""
        return 0

    def deliver(self, peer_id: str, message: dict[str, Any]) -> None:
        """Hands a message to the node."""
        if self.receiver is not None:
            self.receiver.on_message(peer_id, message)

    def up(self, peer_id: str) -> None:
        """Reports a connection."""
        if self.receiver is not None:
            self.receiver.on_peer_up(peer_id)

    def down(self, peer_id: str, *, reset: bool) -> None:
        """Reports a lost connection."""
        if self.receiver is not None:
            self.receiver.on_peer_down(peer_id, reset=reset)
