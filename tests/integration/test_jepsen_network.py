"""Hosts in namespaces: what cuts and bad links do to real packets."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jepsen_tests.hosts.capabilities import Backend, Capabilities, probe_capabilities
from jepsen_tests.hosts.cleanup import CleanUp
from jepsen_tests.hosts.cluster import new_run_id
from jepsen_tests.hosts.link_shape import LinkShape
from jepsen_tests.hosts.namespace_thread import NamespaceThread
from jepsen_tests.hosts.network import CONTROL, NamespaceNetwork

PORT = 7000


@pytest.fixture(scope="module")
def able() -> Capabilities:
    able = probe_capabilities()
    if able.backend is Backend.PROXY or able.nested:
        pytest.skip(f"no network namespaces right here: {able.netns or able.nft}")
    return able


@pytest.fixture
def network(able: Capabilities) -> Iterator[NamespaceNetwork]:
    with CleanUp() as clean_up:
        yield NamespaceNetwork(new_run_id(), ["a"], clean_up)


class Echo:
    """Datagrams from the control host to `a` and back."""

    def __init__(self, network: NamespaceNetwork) -> None:
        self._network = network
        self._inside = NamespaceThread(_path(network.namespace("a")))
        self._far = self._inside.call(lambda: _bound(network.address("a")))
        self._near = network.call(lambda: _bound(network.address(CONTROL)))

    def send(self, count: int) -> list[tuple[int, float]]:
        """Sends datagrams to `a`; returns what arrived there in a second, and after how long."""
        begin = time.monotonic()
        for number in range(count):
            self._near.sendto(number.to_bytes(4, "big") * 50, (self._network.address("a"), PORT))
        arrived = []
        while time.monotonic() - begin < 1.0:
            try:
                data = self._far.recv(2048)
            except TimeoutError:
                continue
            arrived.append((int.from_bytes(data[:4], "big"), time.monotonic() - begin))
        return arrived

    def close(self) -> None:
        self._far.close()
        self._near.close()
        self._inside.close()


def _path(space: str) -> Path:
    return Path("/run/netns") / space


def _bound(address: str) -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    found.bind((address, PORT))
    found.settimeout(0.05)
    return found


@pytest.fixture
def echo(network: NamespaceNetwork) -> Iterator[Echo]:
    echo = Echo(network)
    yield echo
    echo.close()


def test_a_bad_link_is_late_confused_and_lossy_and_gets_well(
    network: NamespaceNetwork, echo: Echo
) -> None:
    assert [number for number, _ in echo.send(50)] == list(range(50))

    network.set_links({(CONTROL, "a"): LinkShape(delay_ms=100)}, "seed")
    late = echo.send(50)
    assert [number for number, _ in late] == list(range(50))
    assert min(at for _, at in late) >= 0.099
    assert network.link_counts()["delayed"] >= 50

    shape = LinkShape(delay_ms=5, loss=0.2, duplicate=0.2, reorder=0.2)
    network.set_links({(CONTROL, "a"): shape}, "seed")
    before = network.link_counts()
    confused = [number for number, _ in echo.send(200)]
    counts = network.link_counts()
    counts.subtract(before)
    assert counts["lost"] > 0 and counts["duplicated"] > 0 and counts["overtook"] > 0
    assert len(confused) == counts["seen"] - counts["lost"] + counts["duplicated"]
    assert confused != sorted(confused)

    network.set_links({}, "")
    assert [number for number, _ in echo.send(50)] == list(range(50))


def test_a_cut_holds_for_a_host_behind_the_switch_too(
    network: NamespaceNetwork, echo: Echo
) -> None:
    network.set_links({("a", CONTROL): LinkShape(delay_ms=1)}, "seed")
    assert len(echo.send(20)) == 20
    network.cut([(CONTROL, "a")])
    assert echo.send(20) == []
    assert network.dropped() == 20
    network.reset()
    assert len(echo.send(20)) == 20


def test_loss_takes_its_share(network: NamespaceNetwork, echo: Echo) -> None:
    network.set_loss([CONTROL], 30)
    arrived = echo.send(200)
    assert 100 <= len(arrived) < 190
    assert network.lost() == 200 - len(arrived)
