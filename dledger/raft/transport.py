"""Raft messages over TCP: one connection per direction, dialled by the sender.

A connection begins with a hello that names cluster, group, sender and receiver, the two with their
incarnations, and the sender's data directory; the answer names the receiver's. Strangers are
refused, and who does not belong to the group any more is told so. A newer connection of a peer
replaces its older one, so messages of two connections never interleave. What a peer does not take
is bounded: above `buffer_bytes_max` messages are dropped, and the engine sends them again later
from the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random as random_module
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from dledger.errors import (
    DLedgerError,
    PeerRefusedError,
    ProtocolError,
    ReplicaRemovedError,
    ReplicaReplacedError,
    ReplicationError,
    StoreError,
    invariant,
)
from dledger.listening import close_listener
from dledger.raft.messages import MessageDecoder, decode_message, encode_message
from dledger.raft.protocols import Identity, PeerPlace, TransportReceiver

logger = logging.getLogger(__name__)

HELLO_VERSION = 2
HELLO_BYTES_MAX = 4096
DIRECTORY_ID_CHARS_MAX = 64
# How an answer begins, and what it means to the one who said hello.
_REFUSALS: dict[str, type[ReplicationError]] = {
    "refused": PeerRefusedError,
    "removed": ReplicaRemovedError,
    "replaced": ReplicaReplacedError,
}


@dataclass(frozen=True, kw_only=True)
class TransportConfig:
    """Identity, addresses and limits of one replica's transport.

    Attributes:
        cluster_name: Must be equal on both sides of a connection.
        group_name: Likewise; the broker name.
        replica_id: This replica.
        listen_host: Address to listen on.
        listen_port: Port to listen on; 0 takes any.
        buffer_bytes_max: Most bytes waiting for one peer; more is dropped.
        strangers_max: Connections whose hello has not come; one more ends the oldest of them.
        retry_max_s: A lost connection is dialled again after a random time up to this.
        connect_timeout_s: For connecting and for the hello, on both sides.
        user_timeout_ms: A connection whose bytes nobody confirms for this long is given up, so
            that a healed network is noticed at once instead of after TCP's own back-off.
    """

    cluster_name: str
    group_name: str
    replica_id: str
    listen_host: str
    listen_port: int
    buffer_bytes_max: int = 16 * 1024 * 1024
    strangers_max: int = 64
    retry_max_s: float = 0.2
    connect_timeout_s: float = 1.0
    user_timeout_ms: int = 3_000


class TcpTransport:
    """Carries messages between replicas over TCP. Satisfies `RaftTransport`."""

    def __init__(self, config: TransportConfig, random: random_module.Random) -> None:
        self._config = config
        self._random = random
        self._receiver: TransportReceiver | None = None
        self._server: asyncio.Server | None = None
        self._peers: dict[str, PeerPlace] = {}
        self._dialers: dict[str, asyncio.Task[None]] = {}
        self._complaints: dict[str, str] = {}  # what each peer was last refused for
        self._outgoing: dict[str, _Outgoing] = {}
        self._incoming: dict[str, _Incoming] = {}
        self._accepted: dict[_Incoming, None] = {}
        self._strangers: dict[_Incoming, asyncio.TimerHandle] = {}  # the oldest first
        self._refused_last = ""
        self._stopped = False

    @property
    def replica_id(self) -> str:
        """The replica whose transport this is."""
        return self._config.replica_id

    @property
    def listen_port(self) -> int:
        """The port bound by `start`."""
        if self._server is None:
            return self._config.listen_port
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self, receiver: TransportReceiver, peers: Mapping[str, PeerPlace]) -> None:
        """Listens and begins to dial every peer.

        Raises:
            OSError: The address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        self._receiver = receiver
        self._server = await loop.create_server(
            lambda: _Incoming(self), self._config.listen_host, self._config.listen_port
        )
        self.set_peers(peers)

    def set_peers(self, peers: Mapping[str, PeerPlace]) -> None:
        """Dials these from now on; connections with others are closed.

        One whose place has changed is another one: the receiver is told that the connection with
        it is down, and that it is up when it has been dialled there.
        """
        loop = asyncio.get_running_loop()
        gone: list[tuple[str, _Outgoing]] = []
        for peer_id in [name for name, place in self._peers.items() if peers.get(name) != place]:
            self._dialers.pop(peer_id).cancel()
            self._complaints.pop(peer_id, None)
            incoming = self._incoming.pop(peer_id, None)
            if incoming is not None:
                incoming.abort()
            outgoing = self._outgoing.get(peer_id)
            if outgoing is not None:
                outgoing.abort()
                gone.append((peer_id, outgoing))
        self._peers = dict(peers)
        for peer_id, place in self._peers.items():
            if peer_id not in self._dialers:
                dialing = self._keep_connected(peer_id, place)
                self._dialers[peer_id] = loop.create_task(dialing, name=f"raft-dial-{peer_id}")
        for peer_id, outgoing in gone:
            self._down(peer_id, outgoing, reset=False)

    async def stop(self) -> None:
        """Closes the listener and every connection."""
        self._stopped = True
        if self._server is not None:
            await close_listener(self._server)
        dialers = list(self._dialers.values())
        for dialer in dialers:
            dialer.cancel()
        await asyncio.gather(*dialers, return_exceptions=True)
        for outgoing in list(self._outgoing.values()):
            outgoing.abort()
        for incoming in list(self._accepted):
            incoming.abort()
        if self._server is not None:
            await self._server.wait_closed()

    def send(self, peer_id: str, message: dict[str, Any]) -> bool:
        """Sends a message; False if the peer is not connected or does not take its bytes."""
        outgoing = self._outgoing.get(peer_id)
        if outgoing is None or outgoing.buffered_bytes() > self._config.buffer_bytes_max:
            return False
        outgoing.write(encode_message(message))
        return True

    def buffered_bytes(self, peer_id: str) -> int:
        """Bytes for the peer that the operating system has not taken yet."""
        outgoing = self._outgoing.get(peer_id)
        return 0 if outgoing is None else outgoing.buffered_bytes()

    async def _keep_connected(self, peer_id: str, place: PeerPlace) -> None:
        host, _, port = place.raft_address.rpartition(":")
        loop = asyncio.get_running_loop()
        while True:
            outgoing = _Outgoing(self._hello(peer_id, place))
            try:
                async with asyncio.timeout(self._config.connect_timeout_s):
                    await loop.create_connection(partial(_same, outgoing), host, int(port))
                    _tune_socket(outgoing.transport, self._config.user_timeout_ms)
                    directory_id = await outgoing.accepted
                self._require().admit(Identity(peer_id, place.incarnation, directory_id))
                self._outgoing[peer_id] = outgoing
                self._up(peer_id)
                reset = await outgoing.lost
                self._down(peer_id, outgoing, reset=reset)
            except ReplicationError as error:
                self._complain(peer_id, error)
                if outgoing.refusal is not None:
                    self._require().on_refused(peer_id, outgoing.refusal)
            except (OSError, ProtocolError, StoreError) as error:  # a timeout is an OSError
                logger.debug("connection to %s failed: %s", peer_id, error)
            finally:
                outgoing.abort()
                self._down(peer_id, outgoing, reset=False)  # if nobody has said so yet
            await asyncio.sleep(self._random.uniform(0.02, self._config.retry_max_s))

    def _require(self) -> TransportReceiver:
        invariant(self._receiver is not None, "the transport has no receiver")
        return self._receiver  # type: ignore[return-value]

    def _complain(self, peer_id: str, error: Exception) -> None:
        """Logs why a replica is not talked to, once for each reason."""
        if self._complaints.get(peer_id) != str(error):
            self._complaints[peer_id] = str(error)
            logger.warning("no connection with replica %s: %s", peer_id, error)

    def _hello(self, peer_id: str, place: PeerPlace) -> bytes:
        config, own = self._config, self._require().identity
        hello = {
            "version": HELLO_VERSION,
            "cluster": config.cluster_name,
            "group": config.group_name,
            "from": own.replica_id,
            "incarnation": own.incarnation,
            "directory": own.directory_id,
            "raft_address": own.raft_address,
            "to": peer_id,
            "to_incarnation": place.incarnation,
        }
        payload = msgspec.msgpack.encode(hello)
        return len(payload).to_bytes(4, "big") + payload

    def check_hello(self, payload: bytes) -> str:
        """Returns the peer that sent this hello.

        Raises:
            ProtocolError: A stranger, or a member of another group.
            ReplicationError: A replica that may not take part, or that looks for another life of
                this one.
        """
        try:
            hello = msgspec.msgpack.decode(payload, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ProtocolError("not a hello") from error
        config = self._config
        expected = {
            "version": HELLO_VERSION,
            "cluster": config.cluster_name,
            "group": config.group_name,
            "to": config.replica_id,
        }
        for name, value in expected.items():
            if hello.get(name) != value:
                raise ProtocolError(f"hello with {name} {hello.get(name)!r}, expected {value!r}")
        names = ("from", "incarnation", "directory", "raft_address")
        peer_id, incarnation, directory_id, raft_address = peer = [hello.get(n) for n in names]
        if (
            not isinstance(peer_id, str)
            or not isinstance(incarnation, int)
            or not isinstance(directory_id, str)
            or len(directory_id) > DIRECTORY_ID_CHARS_MAX
            or not isinstance(raft_address, str)
        ):
            raise ProtocolError(f"hello from {peer!r}")
        self._require().admit(Identity(peer_id, incarnation, directory_id, raft_address))
        own = self._require().identity
        if hello.get("to_incarnation") != own.incarnation:
            raise PeerRefusedError(f"{own.replica_id} is of incarnation {own.incarnation} by now")
        return peer_id

    def answer(self) -> bytes:
        """Returns what a good hello is answered with."""
        return f"ok {self._require().identity.directory_id}\n".encode()

    def refuse(self, error: DLedgerError) -> bytes:
        """Returns what a bad hello is answered with."""
        word = next((word for word, kind in _REFUSALS.items() if type(error) is kind), "refused")
        text = f"{word}: {error}"
        # Strangers may come again and again with the same.
        if text != self._refused_last:
            self._refused_last = text
            logger.warning("Raft connection refused: %s", error)
        return text.encode()[: HELLO_BYTES_MAX - 1] + b"\n"

    def attach(self, incoming: _Incoming) -> None:
        """Notes a connection before its hello, which must come soon."""
        if self._stopped:  # accepted just before
            incoming.abort()
            return
        self._accepted[incoming] = None
        if len(self._strangers) >= self._config.strangers_max:
            oldest = next(iter(self._strangers))
            self._introduced(oldest)
            oldest.abort()
        loop = asyncio.get_running_loop()
        timeout_s = self._config.connect_timeout_s
        self._strangers[incoming] = loop.call_later(timeout_s, incoming.abort)

    def _introduced(self, incoming: _Incoming) -> None:
        """Waits no longer for a connection's hello."""
        timer = self._strangers.pop(incoming, None)
        if timer is not None:
            timer.cancel()

    def replace(self, peer_id: str, incoming: _Incoming) -> None:
        """Makes a connection the peer's one, closing its older one (defect 10)."""
        self._introduced(incoming)
        older = self._incoming.get(peer_id)
        self._incoming[peer_id] = incoming
        if older is not None:
            older.abort()

    def detach(self, incoming: _Incoming) -> None:
        """Forgets a closed connection; the peer's process may be gone."""
        self._accepted.pop(incoming, None)
        self._introduced(incoming)
        peer_id = incoming.peer_id
        if peer_id is None or self._incoming.get(peer_id) is not incoming:
            return
        del self._incoming[peer_id]
        # Our own connection to a dead process closes too, but perhaps a little later.
        outgoing = self._outgoing.get(peer_id)
        if outgoing is not None:
            outgoing.abort(reset=True)

    def deliver(self, peer_id: str, message: dict[str, Any]) -> None:
        """Hands a message to the node."""
        if self._receiver is not None and not self._stopped:
            self._receiver.on_message(peer_id, message)

    def _up(self, peer_id: str) -> None:
        logger.info("connected to replica %s", peer_id)
        if self._receiver is not None:
            self._receiver.on_peer_up(peer_id)

    def _down(self, peer_id: str, outgoing: _Outgoing, *, reset: bool) -> None:
        """Tells, once, that the connection that messages to a peer went over is no more."""
        if self._outgoing.get(peer_id) is not outgoing:
            return
        del self._outgoing[peer_id]
        logger.info("connection to replica %s closed", peer_id)
        if self._receiver is not None and not self._stopped:
            self._receiver.on_peer_down(peer_id, reset=reset)


class _Outgoing(asyncio.Protocol):
    """Our connection to a peer: hello, its answer, then our messages."""

    def __init__(self, hello: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.accepted: asyncio.Future[str] = loop.create_future()
        self.refusal: ReplicationError | None = None
        self.lost: asyncio.Future[bool] = loop.create_future()
        self.transport: Any = None
        self._hello = hello
        self._answer = bytearray()
        self._reset = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.transport.write(self._hello)

    def data_received(self, data: bytes) -> None:
        if self.accepted.done():
            return  # nothing else is ever sent in this direction
        self._answer += data
        if len(self._answer) > HELLO_BYTES_MAX:
            self.abort()
        elif self._answer.endswith(b"\n"):
            answer = self._answer.decode(errors="replace").strip()
            if answer.startswith("ok "):
                self.accepted.set_result(answer[3:][:DIRECTORY_ID_CHARS_MAX])
                return
            word, _, text = answer.partition(": ")
            self.refusal = _REFUSALS.get(word, PeerRefusedError)(text or answer)
            self.accepted.set_exception(self.refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        # An orderly or hard close by the peer's kernel means that its process went away; a
        # timeout of ours does not.
        if not self.accepted.done():
            self.accepted.set_exception(
                ConnectionResetError("closed before the hello was answered")
            )
        if not self.lost.done():
            timed_out = isinstance(exc, TimeoutError)
            self.lost.set_result(self._reset or not timed_out)

    def write(self, buffers: list[Any]) -> None:
        if not self.transport.is_closing():
            self.transport.writelines(buffers)

    def buffered_bytes(self) -> int:
        return int(self.transport.get_write_buffer_size())

    def abort(self, *, reset: bool = False) -> None:
        self._reset = self._reset or reset
        if self.transport is not None:
            self.transport.abort()
        if self.accepted.done():
            if not self.accepted.cancelled():
                self.accepted.exception()  # mark as retrieved
        else:
            self.accepted.cancel()


class _Incoming(asyncio.Protocol):
    """A peer's connection to us: its hello, our answer, then its messages."""

    def __init__(self, owner: TcpTransport) -> None:
        self._owner = owner
        self._decoder = MessageDecoder()
        self._hello = bytearray()
        self._transport: Any = None
        self.peer_id: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._owner.attach(self)

    def data_received(self, data: bytes) -> None:
        try:
            if self.peer_id is None:
                data = self._receive_hello(data)
            if data and self.peer_id is not None:
                for header, payload in self._decoder.receive_data(data):
                    self._owner.deliver(self.peer_id, decode_message(header, payload))
        except (ProtocolError, ReplicationError, StoreError) as error:
            if self.peer_id is None:
                with contextlib.suppress(OSError):
                    self._transport.write(self._owner.refuse(error))
                self._transport.close()
            else:
                logger.warning("Raft connection from %s closed: %s", self.peer_id, error)
                self._transport.abort()

    def _receive_hello(self, data: bytes) -> bytes:
        """Takes bytes of the hello; returns those after it once it is complete."""
        self._hello += data
        if len(self._hello) < 4:
            return b""
        size = int.from_bytes(self._hello[:4], "big")
        if size > HELLO_BYTES_MAX:
            raise ProtocolError(f"hello of {size} bytes")
        if len(self._hello) < 4 + size:
            return b""
        self.peer_id = self._owner.check_hello(bytes(self._hello[4 : 4 + size]))
        rest = bytes(self._hello[4 + size :])
        self._hello.clear()
        self._owner.replace(self.peer_id, self)
        self._transport.write(self._owner.answer())
        return rest

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.detach(self)

    def abort(self) -> None:
        self._transport.abort()


def _same(protocol: _Outgoing) -> _Outgoing:
    return protocol


def _tune_socket(transport: Any, user_timeout_ms: int) -> None:
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_ms)
