"""The TCP transport over real sockets: hello, strangers, garbage, replacement, limits."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from dledger.errors import (
    DLedgerError,
    FrameTooLargeError,
    PeerRefusedError,
    RemoteProtocolError,
    ReplicaRemovedError,
    ReplicaReplacedError,
)
from dledger.raft.messages import MessageDecoder, decode_message, encode_message
from dledger.raft.protocols import Identity, PeerPlace
from dledger.raft.transport import TcpTransport, TransportConfig

HEARTBEAT: dict[str, Any] = {
    "type": "append_entries",
    "term": 1,
    "commit_index": 1,
    "prevLogIdx": 1,
    "prevLogTerm": 0,
    "session": 0,
    "round": 1,
}


class Receiver:
    def __init__(self) -> None:
        self.identity = Identity("nobody")
        self.known: dict[str, tuple[int, str]] = {}
        self.refusals: list[tuple[str, DLedgerError]] = []
        self.messages: list[tuple[str, dict[str, Any]]] = []
        self.up: list[str] = []
        self.down: list[tuple[str, bool]] = []

    def on_message(self, peer_id: str, message: dict[str, Any]) -> None:
        self.messages.append((peer_id, message))

    def admit(self, peer: Identity) -> None:
        if peer.replica_id not in self.known:
            raise PeerRefusedError(f"unknown replica {peer.replica_id!r}")
        incarnation, directory_id = self.known[peer.replica_id]
        if peer.incarnation < incarnation:
            raise ReplicaRemovedError(f"{peer.replica_id} was removed")
        if directory_id not in ("", peer.directory_id):
            raise ReplicaReplacedError(f"{peer.replica_id} lost its data")
        self.known[peer.replica_id] = (peer.incarnation, peer.directory_id)

    def on_refused(self, peer_id: str, error: DLedgerError) -> None:
        self.refusals.append((peer_id, error))

    def on_peer_up(self, peer_id: str) -> None:
        self.up.append(peer_id)

    def on_peer_down(self, peer_id: str, *, reset: bool) -> None:
        self.down.append((peer_id, reset))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def transport(me: str, ports: dict[str, int], **changes: Any) -> TcpTransport:
    settings: dict[str, Any] = {
        "cluster_name": "c",
        "group_name": "g",
        "replica_id": me,
        "listen_host": "127.0.0.1",
        "listen_port": ports[me],
        "retry_max_s": 0.05,
    }
    settings.update(changes)
    return TcpTransport(TransportConfig(**settings), random.Random(1))


async def begin(
    one: TcpTransport, receiver: Receiver, me: str, ports: dict[str, int], incarnation: int = 0
) -> None:
    """Starts a transport among the peers of `ports`."""
    receiver.identity = Identity(me, incarnation, f"directory-{me}")
    receiver.known = dict.fromkeys(ports, (0, ""))
    peers = {peer: PeerPlace(0, f"127.0.0.1:{port}") for peer, port in ports.items() if peer != me}
    await one.start(receiver, peers)


async def until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def test_messages_arrive_in_order_with_their_records() -> None:
    async def main() -> None:
        ports = {"a": free_port(), "b": free_port()}
        a, b = transport("a", ports), transport("b", ports)
        at_a, at_b = Receiver(), Receiver()
        await begin(a, at_a, "a", ports)
        await begin(b, at_b, "b", ports)
        await until(lambda: at_a.up and at_b.up)
        for number in range(100):
            records = [memoryview(b"x" * 1000 * number), b"end"]
            assert a.send("b", {**HEARTBEAT, "round": number, "records": records})
        await until(lambda: len(at_b.messages) == 100)
        assert [message["round"] for _, message in at_b.messages] == list(range(100))
        assert at_b.messages[99][1]["payload"] == b"x" * 99_000 + b"end"
        assert {peer for peer, _ in at_b.messages} == {"a"}
        await b.stop()
        await until(lambda: at_a.down)
        assert at_a.down == [("b", True)]
        await a.stop()

    asyncio.run(main())


@pytest.mark.parametrize(
    "change",
    [{"cluster_name": "other"}, {"group_name": "other"}, {"replica_id": "z"}],
    ids=["cluster", "group", "replica"],
)
def test_strangers_are_refused(change: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        ports = {"a": free_port(), "b": free_port()}
        a = transport("a", ports)
        stranger = transport("b", ports, **change)
        at_a, at_stranger = Receiver(), Receiver()
        await begin(a, at_a, "a", ports)
        await begin(stranger, at_stranger, change.get("replica_id", "b"), ports)
        await until(lambda: "refused" in caplog.text)
        assert not at_stranger.up
        assert not at_a.messages
        await a.stop()
        await stranger.stop()

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x7f\xff\xff\xff" + b"x" * 100,
        b"\x00\x00\x00\x05hello",
        bytes(64),
    ],
    ids=["http", "2GB", "no-msgpack", "zeros"],
)
def test_garbage_closes_only_that_connection(
    garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        ports = {"a": free_port(), "b": free_port()}
        a, b = transport("a", ports), transport("b", ports)
        at_a, at_b = Receiver(), Receiver()
        await begin(a, at_a, "a", ports)
        await begin(b, at_b, "b", ports)
        await until(lambda: at_a.up and at_b.up)
        reader, writer = await asyncio.open_connection("127.0.0.1", ports["a"])
        writer.write(garbage)
        await asyncio.wait_for(reader.read(), 5)  # closed by the other side
        writer.close()
        assert b.send("a", HEARTBEAT)
        await until(lambda: at_a.messages)
        assert not at_a.down
        assert len([r for r in caplog.records if "refused" in r.getMessage()]) == 1
        await a.stop()
        await b.stop()

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())


def test_a_newer_connection_replaces_the_older() -> None:
    async def main() -> None:
        ports = {"a": free_port(), "b": free_port()}
        a = transport("a", ports)
        at_a = Receiver()
        await begin(a, at_a, "a", ports)
        hello = msgspec.msgpack.encode(
            {
                "version": 2,
                "cluster": "c",
                "group": "g",
                "from": "b",
                "incarnation": 0,
                "directory": "directory-b",
                "raft_address": "127.0.0.1:1",
                "to": "a",
                "to_incarnation": 0,
            }
        )
        first_reader, first = await asyncio.open_connection("127.0.0.1", ports["a"])
        first.write(len(hello).to_bytes(4, "big") + hello)
        assert await first_reader.readline() == b"ok directory-a\n"
        second_reader, second = await asyncio.open_connection("127.0.0.1", ports["a"])
        second.write(len(hello).to_bytes(4, "big") + hello)
        assert await second_reader.readline() == b"ok directory-a\n"
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(first_reader.readexactly(1), 5)
        second.write(b"".join(bytes(buffer) for buffer in encode_message(HEARTBEAT)))
        await until(lambda: at_a.messages)
        first.close()
        second.close()
        await a.stop()

    asyncio.run(main())


def test_a_peer_that_does_not_read_is_bounded() -> None:
    async def main() -> None:
        ports = {"a": free_port(), "b": free_port()}
        finished = asyncio.Event()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            size = int.from_bytes(await reader.readexactly(4), "big")
            await reader.readexactly(size)
            writer.write(b"ok directory-b\n")
            await finished.wait()  # and never reads again
            writer.transport.abort()

        server = await asyncio.start_server(accept, "127.0.0.1", ports["b"], limit=1024)
        a = transport("a", ports, buffer_bytes_max=1_000_000, user_timeout_ms=60_000)
        at_a = Receiver()
        await begin(a, at_a, "a", ports)
        await until(lambda: at_a.up)
        record = bytes(500_000)
        accepted = 0
        while a.send("b", {**HEARTBEAT, "records": [record]}):
            accepted += 1
            assert accepted < 200
            await asyncio.sleep(0)
        assert a.buffered_bytes("b") < 1_000_000 + len(record) + 1000
        await a.stop()
        finished.set()
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0)

    asyncio.run(main())


def test_lengths_are_checked_before_anything_is_taken() -> None:
    with pytest.raises(FrameTooLargeError):
        MessageDecoder().receive_data(b"\x7f\xff\xff\xff\x00\x01")
    with pytest.raises(RemoteProtocolError):
        MessageDecoder().receive_data(b"\x00\x00\x00\x04\xff\xff")


@pytest.mark.parametrize("field", ["term", "commit_index", "prevLogIdx", "session"])
def test_missing_or_mistyped_fields_are_refused(field: str) -> None:
    for bad in ({}, {field: "1"}, {field: True}, {field: None}):
        message = {key: value for key, value in HEARTBEAT.items() if key != field} | bad
        header = msgspec.msgpack.encode(message)
        with pytest.raises(RemoteProtocolError):
            decode_message(header, b"")


def test_frames_survive_any_split() -> None:
    stream = b"".join(
        bytes(buffer)
        for number in range(5)
        for buffer in encode_message({**HEARTBEAT, "round": number, "records": [b"r" * number]})
    )
    for step in range(1, 40):
        decoder = MessageDecoder()
        frames = []
        for start in range(0, len(stream), step):
            frames += decoder.receive_data(stream[start : start + step])
        messages = [decode_message(*frame) for frame in frames]
        assert [message["round"] for message in messages] == list(range(5))
        assert [message["payload"] for message in messages] == [b"r" * n for n in range(5)]


async def ended(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(5):
            return await reader.read() == b""
    except ConnectionResetError:
        return True


def test_who_does_not_say_hello_is_sent_away() -> None:
    async def main() -> None:
        ports = {"a": free_port(), "b": free_port()}
        a = transport("a", ports, connect_timeout_s=0.3)
        b = transport("b", ports)
        at_b = Receiver()
        await begin(a, Receiver(), "a", ports)
        peers = [await asyncio.open_connection("127.0.0.1", ports["a"]) for _ in range(5)]
        for number, (_, writer) in enumerate(peers):
            writer.write(bytes([0, 0, 0, 9, 1][:number]))
        for reader, writer in peers:
            assert await ended(reader)
            writer.close()
        await begin(b, at_b, "b", ports)
        await until(lambda: at_b.up)
        await asyncio.sleep(0.5)  # longer than a hello may take
        assert not at_b.down
        await a.stop()
        await b.stop()

    asyncio.run(main())


def test_many_silent_strangers_cost_the_oldest_its_place() -> None:
    async def main() -> None:
        ports = {"a": free_port(), "b": free_port()}
        a = transport("a", ports, connect_timeout_s=60.0, strangers_max=8)
        b = transport("b", ports)
        at_b = Receiver()
        await begin(a, Receiver(), "a", ports)
        peers = [await asyncio.open_connection("127.0.0.1", ports["a"]) for _ in range(20)]
        for reader, _ in peers[:12]:
            assert await ended(reader)
        assert not peers[-1][0].at_eof()
        await begin(b, at_b, "b", ports)
        await until(lambda: at_b.up)
        assert len(a._accepted) <= 9
        for _, writer in peers:
            writer.close()
        await a.stop()
        await b.stop()

    asyncio.run(main())


def test_who_was_removed_or_lost_its_data_is_told_so() -> None:
    async def main() -> None:
        ports = {"a": free_port(), "b": free_port()}
        a, b = transport("a", ports), transport("b", ports)
        at_a, at_b = Receiver(), Receiver()
        await begin(a, at_a, "a", ports)
        at_a.known["b"] = (1, "")  # its first life is over
        await begin(b, at_b, "b", ports)
        await until(lambda: at_b.refusals)
        assert isinstance(at_b.refusals[0][1], ReplicaRemovedError)
        at_a.known["b"] = (0, "another directory")
        await until(lambda: isinstance(at_b.refusals[-1][1], ReplicaReplacedError))
        assert "lost its data" in str(at_b.refusals[-1][1])
        # Neither side takes the other for its peer, whoever dialled.
        assert not at_a.up
        assert not at_b.up
        await a.stop()
        await b.stop()

    asyncio.run(main())


def test_another_life_of_a_peer_is_not_the_one_that_was_dialled() -> None:
    async def main() -> None:
        ports = {"a": free_port(), "b": free_port()}
        a, b = transport("a", ports), transport("b", ports)
        at_a, at_b = Receiver(), Receiver()
        await begin(a, at_a, "a", ports)
        await begin(b, at_b, "b", ports, incarnation=1)
        await until(lambda: at_a.refusals)
        assert isinstance(at_a.refusals[0][1], PeerRefusedError)
        assert not at_a.up
        a.set_peers({"b": PeerPlace(1, f"127.0.0.1:{ports['b']}")})
        await until(lambda: at_a.up)
        await a.stop()
        await b.stop()

    asyncio.run(main())


def test_peers_come_and_go() -> None:
    async def main() -> None:
        ports = {"a": free_port(), "b": free_port()}
        a, b = transport("a", ports), transport("b", ports)
        at_a, at_b = Receiver(), Receiver()
        await begin(a, at_a, "a", ports)
        await begin(b, at_b, "b", ports)
        await until(lambda: at_a.up and at_b.up)
        a.set_peers({})
        assert not a.send("b", HEARTBEAT)
        await until(lambda: at_b.down)
        del at_a.known["b"]
        await until(lambda: at_b.refusals)
        at_a.known["b"] = (0, "")
        a.set_peers({"b": PeerPlace(0, f"127.0.0.1:{ports['b']}")})
        await until(lambda: len(at_a.up) == 2 and len(at_b.up) == 2)
        await a.stop()
        await b.stop()

    asyncio.run(main())


def test_a_peer_with_another_address_is_down_until_it_is_reached_there() -> None:
    async def main() -> None:
        ports = {"a": free_port(), "b": free_port()}
        a, b = transport("a", ports), transport("b", ports)
        moved = transport("b", {**ports, "b": free_port()})
        at_a, at_b, at_moved = Receiver(), Receiver(), Receiver()
        await begin(a, at_a, "a", ports)
        await begin(b, at_b, "b", ports)
        await until(lambda: at_a.up and at_b.up)
        place = PeerPlace(0, f"127.0.0.1:{moved._config.listen_port}")
        a.set_peers({"b": place})
        assert at_a.down == [("b", False)], "told at once: nothing can be sent"
        assert not a.send("b", HEARTBEAT)
        a.set_peers({"b": place})
        await b.stop()
        await begin(moved, at_moved, "b", {**ports, "b": moved._config.listen_port})
        await until(lambda: len(at_a.up) == 2 and at_moved.up)
        assert a.send("b", HEARTBEAT)
        await until(lambda: at_moved.messages)
        assert at_a.down == [("b", False)], "told once"
        await a.stop()
        await moved.stop()

    asyncio.run(main())


def test_a_peer_whose_address_changes_while_it_is_being_admitted_is_not_left_for_up() -> None:
    async def main() -> None:
        ports = {"a": free_port(), "b": free_port()}
        a, b = transport("a", ports), transport("b", ports)
        at_a, at_b = Receiver(), Receiver()
        nowhere = PeerPlace(0, f"127.0.0.1:{free_port()}")
        admit, admitted = at_a.admit, []

        def admit_and_move(peer: Identity) -> None:
            admit(peer)
            admitted.append(peer)
            a.set_peers({"b": nowhere})

        at_a.admit = admit_and_move  # type: ignore[method-assign]
        await begin(a, at_a, "a", ports)
        at_b.admit = lambda _peer: None  # type: ignore[method-assign]
        at_b.identity = Identity("b", 0, "directory-b")
        await b.start(at_b, {})
        await until(lambda: admitted and len(at_a.down) == len(at_a.up))
        assert not a.send("b", HEARTBEAT)
        await a.stop()
        await b.stop()

    asyncio.run(main())
