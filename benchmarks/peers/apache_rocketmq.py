"""Apache RocketMQ with DLedger: three brokers of one Raft group, through dledger's client."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from benchmarks.peers.remoting import JARS, RemotingPeer, java, no_java
from benchmarks.peers.servers import READY_S, Servers, StartError, listens
from cli.cluster import free_port_base
from dledger import AsyncAdmin, DLedgerError

NAME = "apache-a"
BROKER = """brokerClusterName=DefaultCluster
brokerName=apache-a
brokerIP1=127.0.0.1
namesrvAddr=127.0.0.1:{nameserver}
listenPort={port}
storePathRootDir={directory}/store
enableDLegerCommitLog=true
dLegerGroup=apache-a
dLegerPeers={peers}
dLegerSelfId=n{number}
diskMaxUsedSpaceRatio=98
mappedFileSizeCommitLog=268435456
enableBatchPush=true
waitTimeMillsInSendQueue=10000
osPageCacheBusyTimeOutMills=10000
"""
# A broker takes four ports: two below its own (for a second listener), its own, one above, and
# DLedger's.
STRIDE = 5


class ApacheRocketMQ(RemotingPeer):
    """Acknowledges when a majority has a message in memory; files are synced in the background."""

    title = "Apache RocketMQ, DLedger"
    consensus = "Raft"
    synced = "none (in the background)"
    warm_up = 4.0  # of three JVMs

    def missing(self) -> str | None:
        return no_java()

    def version(self) -> str:
        return "" if JARS is None else JARS.name.rpartition("-")[2]

    @property
    def nameserver(self) -> str:
        return f"127.0.0.1:{self._base}"

    def start(self, directory: Path) -> None:
        self._servers = Servers(directory)
        self._base = free_port_base(1 + 3 * STRIDE)
        self._killed: str | None = None
        home = {"ROCKETMQ_HOME": str(directory)}
        (directory / "namesrv.conf").write_text(f"listenPort={self._base}\n")
        command = [*java("128m", f"-Duser.home={directory}")]
        command += ["org.apache.rocketmq.namesrv.NamesrvStartup", "-c", "namesrv.conf"]
        self._servers.start("namesrv", command, home)
        self._servers.wait_port("namesrv", self._base)
        for number in range(3):
            self._start(number)
        self._wait_whole()

    def _port(self, number: int) -> int:
        return self._base + 3 + number * STRIDE

    def _start(self, number: int) -> None:
        directory = self._servers.directory / f"n{number}"
        directory.mkdir(exist_ok=True)
        (directory / "store" / "lock").unlink(missing_ok=True)
        peers = ";".join(f"n{n}-127.0.0.1:{self._port(n) + 2}" for n in range(3))
        text = BROKER.format(
            nameserver=self._base,
            port=self._port(number),
            directory=directory,
            peers=peers,
            number=number,
        )
        (directory / "broker.conf").write_text(text)
        # As much memory as a broker needs; its own script would take 8 GB.
        command = java("1g", "-XX:MaxDirectMemorySize=1g", f"-Duser.home={directory}")
        command += ["org.apache.rocketmq.broker.BrokerStartup", "-c", f"{directory}/broker.conf"]
        self._servers.start(f"n{number}", command, {"ROCKETMQ_HOME": str(directory)})

    def stop(self) -> None:
        self._servers.stop()

    def nodes(self) -> dict[str, int]:
        return {f"n{number}": self._servers.pid(f"n{number}") for number in range(3)}

    async def _addresses(self) -> dict[int, str]:
        """Returns the brokers that have registered; 0 is the leader."""
        async with AsyncAdmin(nameserver=self.nameserver) as admin:
            brokers = (await admin.cluster()).brokers
            return dict(brokers[NAME].addresses) if NAME in brokers else {}

    def _wait_whole(self) -> None:
        """Waits until three brokers have registered and the one that leads listens.

        Raises:
            StartError: Not in time.
        """
        deadline = time.monotonic() + READY_S
        while True:
            if ended := self._servers.ended():
                raise StartError(f"{ended[0]} ended:\n{self._servers.output(ended[0])[-1500:]}")
            try:
                addresses = asyncio.run(self._addresses())
            except DLedgerError:
                addresses = {}
            places = {self._port(number) for number in range(3)}
            known = {int(address.rpartition(":")[2]) for address in addresses.values()}
            if 0 in addresses and known == places and all(map(listens, places)):
                return
            if time.monotonic() > deadline:
                raise StartError(f"after {READY_S:g} s only these have registered: {addresses}")
            time.sleep(0.1)

    async def leader(self, topic: str) -> str:
        leader = int((await self._addresses())[0].rpartition(":")[2])
        number = next(number for number in range(3) if self._port(number) == leader)
        return f"n{number}"

    def kill(self, node: str) -> None:
        self._servers.kill(node)
        self._killed = node

    def revive(self) -> None:
        if self._killed is not None:
            self._start(int(self._killed[1:]))
            self._killed = None
            self._wait_whole()
