"""Which address each party uses for each other: plain on real hosts, through proxies else."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Protocol

from jepsen_tests.hosts.network import Network
from jepsen_tests.hosts.proxies import LOOPBACK, ProxyNetwork, free_ports

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

    def dial(self, host: str) -> dict[str, str]:
        """Returns what the processes of a host dial in place of the addresses they know."""
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

    def dial(self, host: str) -> dict[str, str]:
        """Returns nothing: all dial real addresses."""
        return {}


class ProxyAddressing:
    """All on the loopback, with ports of their own; each party dials its proxies instead."""

    def __init__(
        self,
        network: ProxyNetwork,
        replicas: Sequence[str],
        chance: random.Random,
        nameserver_host: str = "ns0",
    ) -> None:
        """Chooses ports and makes all proxies.

        Raises:
            HarnessError: There are not enough free ports.
        """
        self._nameserver_host = nameserver_host
        ports = iter(free_ports(2 * len(replicas) + 1, chance))
        self._nameserver_port = next(ports)
        self._client_ports = {replica: next(ports) for replica in replicas}
        self._raft_ports = {replica: next(ports) for replica in replicas}
        self._dial = {host: self._open(network, host) for host in network.hosts}

    def _open(self, network: ProxyNetwork, host: str) -> dict[str, str]:
        targets = [(self._nameserver_host, self._nameserver_port), *self._client_ports.items()]
        if host in self._raft_ports:
            targets += self._raft_ports.items()
        return {
            f"{LOOPBACK}:{port}": network.open((host, other), port)
            for other, port in targets
            if other != host
        }

    def listen(self, host: str) -> str:
        """Returns what the nameserver on a host binds."""
        return f"{LOOPBACK}:{self._nameserver_port}"

    def nameserver(self, host: str) -> str:
        """Returns the nameserver's real address, the same for everybody."""
        return self.listen(self._nameserver_host)

    def control(self, host: str) -> str:
        """Returns the real address, which the harness dials as it is."""
        if host == self._nameserver_host:
            return self.listen(host)
        return f"{LOOPBACK}:{self._client_ports[host]}"

    def broker_settings(self, replica: str, group: Sequence[str]) -> dict[str, Any]:
        """Returns the real addresses, the same on all."""
        return {
            "listen_host": LOOPBACK,
            "replicas": [
                {
                    "id": member,
                    "address": self.control(member),
                    "raft_address": f"{LOOPBACK}:{self._raft_ports[member]}",
                }
                for member in group
            ],
        }

    def dial(self, host: str) -> dict[str, str]:
        """Returns the proxy for each address that the processes of a host know."""
        return self._dial[host]
