"""Which address each party uses for each other: plain on real hosts, through proxies else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from jepsen_tests.hosts.network import Network

NAMESERVER_PORT = 9876
CLIENT_PORT = 10911
RAFT_PORT = 10912


class Addressing(Protocol):
    """Addresses as seen by one party."""

    def listen(self, host: str) -> str:
        """Returns what the nameserver on a host binds."""
        ...

    def nameserver(self, host: str) -> str:
        """Returns the nameserver's address as the parties on a host use it."""
        ...

    def control(self, host: str) -> str:
        """Returns where the harness itself asks a process, past every fault."""
        ...

    def broker_settings(self, replica: str, group: Sequence[str]) -> dict[str, Any]:
        """Returns `listen_host`, `replicas` and the like for one replica's configuration."""
        ...


class HostAddressing:
    """Every host has an address of its own; the ports are RocketMQ's usual ones."""

    def __init__(self, network: Network, nameserver_host: str = "ns0") -> None:
        self._network = network
        self._nameserver_host = nameserver_host

    def listen(self, host: str) -> str:
        """Returns what the nameserver on a host binds."""
        return f"{self._network.address(host)}:{NAMESERVER_PORT}"

    def nameserver(self, host: str) -> str:
        """Returns the nameserver's address, the same for everybody."""
        return self.listen(self._nameserver_host)

    def control(self, host: str) -> str:
        """Returns a process's ordinary address: the control host is never cut off."""
        port = NAMESERVER_PORT if host == self._nameserver_host else CLIENT_PORT
        return f"{self._network.address(host)}:{port}"

    def broker_settings(self, replica: str, group: Sequence[str]) -> dict[str, Any]:
        """Returns the addresses for one replica's configuration, the same on all."""
        return {
            "listen_host": self._network.address(replica),
            "replicas": [
                {
                    "id": member,
                    "address": f"{self._network.address(member)}:{CLIENT_PORT}",
                    "raft_address": f"{self._network.address(member)}:{RAFT_PORT}",
                }
                for member in group
            ],
        }
