"""Hosts behind TCP proxies: what a cut does to connections."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Iterator

import pytest

from jepsen_tests.hosts import proxies
from jepsen_tests.hosts.cleanup import CleanUp
from jepsen_tests.hosts.proxies import LOOPBACK, ProxyNetwork, free_ports

AB, BA = ("a", "b"), ("b", "a")


@pytest.fixture
def network() -> Iterator[ProxyNetwork]:
    with CleanUp() as clean_up:
        yield ProxyNetwork(["a", "b"], clean_up)


class Pair:
    """`a` connected to `b`, by way of a proxy."""

    def __init__(self, network: ProxyNetwork) -> None:
        self.listener = socket.create_server((LOOPBACK, 0))
        self.listener.settimeout(5.0)
        self.dial = network.open(AB, self.listener.getsockname()[1])
        self.near = self.connect()
        self.far = self.accept()

    def connect(self) -> socket.socket:
        host, _, port = self.dial.rpartition(":")
        return socket.create_connection((host, int(port)), timeout=5.0)

    def accept(self) -> socket.socket:
        found, _ = self.listener.accept()
        found.settimeout(5.0)
        return found

    def close(self) -> None:
        for sock in (self.near, self.far, self.listener):
            sock.close()


@pytest.fixture
def pair(network: ProxyNetwork) -> Iterator[Pair]:
    pair = Pair(network)
    yield pair
    pair.close()


def nothing_comes(sock: socket.socket, seconds: float = 0.3) -> bool:
    sock.settimeout(seconds)
    try:
        sock.recv(1)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(5.0)
    return False


def read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, "the connection ended"
        data += piece
    return data


def test_a_short_cut_holds_the_stream_back_and_loses_nothing(
    network: ProxyNetwork, pair: Pair
) -> None:
    pair.near.sendall(b"one")
    assert read(pair.far, 3) == b"one"
    network.cut([AB, BA])
    assert network.dropped() == 0
    pair.near.sendall(b"two")
    pair.far.sendall(b"back")
    assert nothing_comes(pair.far)
    assert nothing_comes(pair.near)
    assert network.dropped() == 7
    network.reset()
    assert read(pair.far, 3) == b"two"
    assert read(pair.near, 4) == b"back"
    assert network.dropped() == 7


def test_one_direction_can_be_cut(network: ProxyNetwork, pair: Pair) -> None:
    network.cut([BA])
    pair.near.sendall(b"to b")
    assert read(pair.far, 4) == b"to b"
    pair.far.sendall(b"to a")
    assert nothing_comes(pair.near)
    network.reset()
    assert read(pair.near, 4) == b"to a"


def test_much_data_passes_whole_across_a_cut(network: ProxyNetwork, pair: Pair) -> None:
    data = random.Random(5).randbytes(3_000_000)
    received = bytearray()
    pair.near.setblocking(False)
    sent, cut_at, healed_at = 0, 500_000, 0.0
    pair.far.settimeout(0.01)
    deadline = time.monotonic() + 20
    while len(received) < len(data) and time.monotonic() < deadline:
        if cut_at and sent > cut_at:
            network.cut([AB])
            cut_at, healed_at = 0, time.monotonic() + 0.5
        if healed_at and time.monotonic() > healed_at:
            network.reset()
            healed_at = 0.0
        with contextlib.suppress(BlockingIOError):
            sent += pair.near.send(data[sent : sent + 65_536])
        with contextlib.suppress(TimeoutError):
            received += pair.far.recv(65_536)
    assert bytes(received) == data


def test_a_connection_made_during_a_cut_waits_for_the_heal(
    network: ProxyNetwork, pair: Pair
) -> None:
    network.cut([BA])
    held = pair.connect()
    held.sendall(b"hello")
    pair.listener.settimeout(0.3)
    with pytest.raises(TimeoutError):
        pair.accept()
    assert network.dropped() == 1
    network.reset()
    pair.listener.settimeout(5.0)
    far = pair.accept()
    assert read(far, 5) == b"hello"
    far.close()
    held.close()


def test_a_long_cut_ends_in_a_reset(
    network: ProxyNetwork, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxies, "_LONG_CUT_S", 0.2)
    network.cut([AB, BA])
    pair.near.sendall(b"lost with the connection, as on any reset")
    assert nothing_comes(pair.far)
    network.reset()
    for sock in (pair.near, pair.far):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_an_end_crosses_when_the_cut_is_healed(network: ProxyNetwork, pair: Pair) -> None:
    network.cut([AB, BA])
    pair.near.close()
    assert nothing_comes(pair.far)
    network.reset()
    assert pair.far.recv(1) == b""


def test_nobody_there_is_told_at_once(network: ProxyNetwork, pair: Pair) -> None:
    pair.listener.close()
    with pytest.raises(ConnectionResetError), pair.connect() as near:  # perhaps before it knew
        near.recv(1)


def test_free_ports_are_different_and_free() -> None:
    found = free_ports(20, random.Random(3))
    assert len(set(found)) == 20
    for port in found:
        socket.create_server((LOOPBACK, port)).close()
