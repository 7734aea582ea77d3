"""A cluster inside the test's process: the servers' real code, real sockets, temporary data.

    with LocalCluster(replicas=3) as cluster:
        with Producer("orders", nameserver=cluster.nameserver) as producer:
            producer.send(Message("orders", b"first"))
            cluster.kill_leader()
            producer.send(Message("orders", b"second"))

Every replica and the nameserver run in threads of this process. So nothing is left running when
the process ends, however it ends, and a start takes a fraction of a second. What differs from
processes: a busy test takes the interpreter from the servers for moments, and the replicas' clocks
are the test's. Not for measurements, and not for proving the servers (`dledger jepsen` does that).
"""

from __future__ import annotations

import atexit
import logging
import string
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from broker.config import BrokerConfig
from dledger.client.admin import AsyncAdmin
from dledger.config import build_config
from dledger.errors import DLedgerError, InvalidParameterError, LocalProtocolError
from dledger.lifetime import Lifetime
from dledger.testing.hosting import NameserverHost, ReplicaHost, ReplicaState
from dledger.testing.links import Links
from dledger.testing.places import HOST, Ports, TemporaryHome
from nameserver.server import NameserverConfig

T = TypeVar("T")

GROUPS_MAX = 26
READY_TIMEOUT_S = 15.0
TEMPLATE_TOPIC = "TBW102"
_POLL_S = 0.01
# Where the application has not set up logging, Python would print the servers' warnings; a test
# that kills and isolates replicas has nothing but warnings. Handlers of the application get them.
for _server in ("broker", "nameserver", "store", "dledger.raft"):
    logging.getLogger(_server).addHandler(logging.NullHandler())

# Quicker than the defaults: all replicas are on this machine. Slow enough for a busy test process.
_SETTINGS: dict[str, Any] = {
    "raft": {
        "heartbeat_ms": 40,
        "election_timeout_min_ms": 200,
        "election_timeout_max_ms": 400,
        "check_quorum_ms": 600,
    },
    "store": {"segment_bytes": 16 * 1024 * 1024, "map_bytes": 64 * 1024 * 1024},
    "timing": {"register_interval_s": 2.0, "register_timeout_s": 1.0},
}


class Partition:
    """Cut links; heals them at the end of a `with` block, or by `heal`."""

    def __init__(self, links: Links) -> None:
        self._links = links

    def heal(self) -> None:
        """Lets all replicas hear each other again."""
        self._links.heal()

    def __enter__(self) -> Self:
        """The links are cut already."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Heals."""
        self.heal()


class LocalCluster(Lifetime):
    """A nameserver and broker groups, for the time of a `with` block. One thread at a time.

    See `AsyncLocalCluster` for tests that run in an event loop.
    """

    def __init__(
        self,
        replicas: int = 3,
        groups: int | Sequence[int] = 1,
        *,
        directory: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Checks the arguments; starts nothing.

        Args:
            replicas: Of each group: 1, 3 or 5.
            groups: How many; or the number of replicas of each, which may differ.
            directory: Where the temporary data directory is made; the system's by default.
            settings: Keys of `broker.toml`, nested, over the ones for tests.

        Raises:
            InvalidParameterError: A number makes no sense.
        """
        sizes = [replicas] * groups if isinstance(groups, int) else list(groups)
        if not 1 <= len(sizes) <= GROUPS_MAX:
            raise InvalidParameterError(f"groups must lie in 1..{GROUPS_MAX}, not {len(sizes)}")
        for size in sizes:
            _check_size(size)
        self._sizes = sizes
        self._parent = directory
        self._settings = _merged(_SETTINGS, settings or {})
        self._ports = Ports()
        self._links = Links()
        self._home: TemporaryHome | None = None
        self._nameserver: NameserverHost | None = None
        self._nameserver_address = ""
        self._admin: AsyncAdmin | None = None
        self._groups: dict[str, list[str]] = {}
        self._hosts: dict[str, ReplicaHost] = {}

    def __repr__(self) -> str:
        hosts = ", ".join(f"{name} {host.state.value}" for name, host in self._hosts.items())
        return f"<LocalCluster {hosts or 'closed'}>"

    # --- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts everything and waits until it serves. Nothing remains if this fails.

        Raises:
            TimeoutError: It does not serve in time.
            DLedgerError: A server cannot start.
        """
        if self._home is not None:
            raise LocalProtocolError("the cluster runs already")
        self._home = TemporaryHome(self._parent)
        atexit.register(self.close)
        try:
            port = self._ports.take()
            self._nameserver_address = f"{HOST}:{port}"
            self._nameserver = NameserverHost(NameserverConfig(host=HOST, port=port))
            self._nameserver.start()
            self._admin = AsyncAdmin(nameserver=self._nameserver_address)
            self._nameserver.run(self._admin.start())
            for size in self._sizes:
                self._make_group(size)
            for host in self._hosts.values():
                host.start()
            self.wait_until_serving()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends everything and deletes the data. Twice does nothing."""
        if self._home is None:
            return
        atexit.unregister(self.close)
        for host in self._hosts.values():
            host.crash()  # its data goes away: there is nothing to bring in order
        if self._nameserver is not None:
            if self._admin is not None:
                self._nameserver.run(self._admin.close())
            self._nameserver.stop()
        self._links.heal()
        self._ports.release()
        self._home.remove()
        self._groups.clear()
        self._hosts.clear()
        self._home = self._nameserver = self._admin = None

    # --- what there is ------------------------------------------------------------------------

    @property
    def nameserver(self) -> str:
        """The nameserver's `host:port`, as clients take it."""
        return self._nameserver_address

    @property
    def groups(self) -> list[str]:
        """Names of the broker groups."""
        return list(self._groups)

    def replicas(self, group: str | None = None) -> list[str]:
        """Returns the ids of a group's replicas, of all groups by default."""
        if group is None:
            return list(self._hosts)
        return list(self._group(group))

    def address(self, replica_id: str) -> str:
        """Returns where clients reach a replica."""
        return self._host(replica_id).config.replica.address

    def state(self, replica_id: str) -> str:
        """Returns `running`, `paused` or `down`."""
        return self._host(replica_id).state.value

    def leader(self, group: str | None = None, *, timeout_s: float = READY_TIMEOUT_S) -> str:
        """Returns the replica that leads a group (the first one by default), waiting for it.

        Raises:
            TimeoutError: Nobody leads in time.
        """
        members = self._group(group)
        return self._wait(
            lambda: self._leader_of(members), timeout_s, lambda: f"nobody of {members} leads"
        )

    def wait_until_serving(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Waits until every group with a majority has a leader that the nameserver knows.

        Raises:
            TimeoutError: Not in time; says what lacks.
        """
        self._wait(lambda: not self._what_lacks() or None, timeout_s, self._what_lacks)

    # --- faults -------------------------------------------------------------------------------

    def kill(self, replica_id: str) -> None:
        """Ends a replica as `kill -9` does: its connections break, nothing is brought in order."""
        self._host(replica_id).crash()

    def kill_leader(self, group: str | None = None) -> str:
        """Kills the leader of a group (the first one by default); returns which replica it was.

        Does not wait for the next one: see `leader` and `wait_until_serving`.
        """
        leader = self.leader(group)
        self.kill(leader)
        return leader

    def stop(self, replica_id: str) -> None:
        """Stops a replica in order, as SIGTERM does: it hands its leadership over first."""
        self._host(replica_id).stop()

    def restart(self, *replica_ids: str) -> list[str]:
        """Starts replicas again, on their data and ports; running ones are stopped in order first.

        Args:
            replica_ids: All that are down by default.

        Returns:
            The replicas started. They may still be catching up: see `wait_until_serving`.
        """
        chosen = list(replica_ids) or [
            name for name, host in self._hosts.items() if host.state is ReplicaState.DOWN
        ]
        hosts = [self._host(name) for name in chosen]
        for host in hosts:
            if host.state is not ReplicaState.DOWN:
                host.stop()
            host.start()
        return chosen

    def pause(self, replica_id: str) -> None:
        """Stops a replica in its tracks, as SIGSTOP does: it is connected and answers nothing."""
        self._host(replica_id).pause()

    def resume(self, *replica_ids: str) -> None:
        """Lets paused replicas go on, all by default."""
        for name in replica_ids or tuple(self._hosts):
            self._host(name).resume()

    def partition(self, *islands: Sequence[str]) -> Partition:
        """Cuts the network between replicas; nothing is reset, messages just do not arrive.

        Clients and nameserver go on reaching every replica: a leader without its majority answers,
        after a moment, that it does not lead. A former partition is replaced.

        Args:
            islands: Replicas that keep hearing each other; all in none of them form one more. So
                `partition([cluster.leader()])` isolates the leader.

        Returns:
            What heals it, also as a context manager.

        Raises:
            InvalidParameterError: An unknown replica, or one in two islands. Nothing was changed.
        """
        self._links.cut(islands, self._hosts)
        return Partition(self._links)

    def heal(self) -> None:
        """Ends a partition."""
        self._links.heal()

    def mend(self) -> None:
        """Ends every fault: heals, resumes, restarts what is down; waits until it serves."""
        self.heal()
        self.resume()
        self.restart()
        self.wait_until_serving()

    # --- content ------------------------------------------------------------------------------

    def create_topic(
        self, name: str, *, queue_count: int = 4, groups: Sequence[str] | None = None
    ) -> None:
        """Creates a topic in the groups named, in all by default, and waits until it is known."""
        nameserver, admin = self._running()
        nameserver.run(admin.create_topic(name, queue_count=queue_count, broker_names=groups))

    def delete_topic(self, name: str) -> None:
        """Deletes a topic with its messages."""
        nameserver, admin = self._running()
        nameserver.run(admin.delete_topic(name))

    def add_group(self, replicas: int = 3) -> str:
        """Adds a broker group to the running cluster and waits until it serves; returns its name.

        Topics are not extended to it: `create_topic` with its name does that. See
        `dledger group add` for clusters of processes.
        """
        _check_size(replicas)
        self._running()
        if len(self._groups) >= GROUPS_MAX:
            raise InvalidParameterError(f"a cluster has at most {GROUPS_MAX} groups")
        name = self._make_group(replicas)
        for replica_id in self._groups[name]:
            self._hosts[replica_id].start()
        self.wait_until_serving()
        return name

    # --- inside -------------------------------------------------------------------------------

    def _make_group(self, size: int) -> str:
        assert self._home is not None
        name = f"broker-{string.ascii_lowercase[len(self._groups)]}"
        entries = [
            {
                "id": f"{name}-{number}",
                "address": f"{HOST}:{self._ports.take()}",
                "raft_address": f"{HOST}:{self._ports.take()}",
            }
            for number in range(size)
        ]
        for entry in entries:
            values = {
                **self._settings,
                "broker_name": name,
                "replica_id": entry["id"],
                "replicas": entries,
                "nameservers": [self._nameserver_address],
                "data_directory": str(self._home.path / entry["id"]),
            }
            config = build_config(BrokerConfig, values)
            self._hosts[entry["id"]] = ReplicaHost(config, self._links)
        self._groups[name] = [entry["id"] for entry in entries]
        return name

    def _running(self) -> tuple[NameserverHost, AsyncAdmin]:
        if self._nameserver is None or self._admin is None:
            raise LocalProtocolError("the cluster does not run")
        return self._nameserver, self._admin

    def _group(self, name: str | None) -> list[str]:
        self._running()
        if name is None:
            return next(iter(self._groups.values()))
        if name not in self._groups:
            raise InvalidParameterError(f"the cluster has no group {name}: {self.groups}")
        return self._groups[name]

    def _host(self, replica_id: str) -> ReplicaHost:
        host = self._hosts.get(replica_id)
        if host is None:
            known = list(self._hosts)
            raise InvalidParameterError(f"the cluster has no replica {replica_id}: {known}")
        return host

    def _leader_of(self, members: Sequence[str]) -> str | None:
        # One that was cut off may believe in itself for a while: the highest term counts.
        terms = [(self._hosts[name].serving_term, name) for name in members]
        serving = [(term, name) for term, name in terms if term is not None]
        return max(serving)[1] if serving else None

    def _what_lacks(self) -> str:
        nameserver, admin = self._running()
        leaders: dict[str, str] = {}
        for name, members in self._groups.items():
            running = [m for m in members if self._hosts[m].state is ReplicaState.RUNNING]
            if 2 * len(running) <= len(members):
                continue
            leader = self._leader_of(members)
            if leader is None:
                failures = [f"{m}: {self._hosts[m].failure}" for m in members]
                return f"{name} has no leader; {failures}"
            if not self._hosts[leader].has_topic(TEMPLATE_TOPIC):
                return f"{leader} is still creating the system topics"
            leaders[name] = self.address(leader)
        try:
            known = nameserver.run(admin.cluster()).brokers
        except DLedgerError as error:
            return f"the nameserver does not answer: {error}"
        for name, address in leaders.items():
            if name not in known or known[name].addresses.get(0) != address:
                return f"the nameserver does not know the leader of {name}"
        return ""

    def _wait(
        self, look: Callable[[], T | None], timeout_s: float, describe: Callable[[], str]
    ) -> T:
        """Returns the first value that counts as true."""
        deadline = time.monotonic() + timeout_s
        while not (value := look()):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"not within {timeout_s:g} s: {describe()}")
            time.sleep(_POLL_S)
        return value


def _check_size(replicas: int) -> None:
    if replicas not in (1, 3, 5):
        raise InvalidParameterError(f"a group has 1, 3 or 5 replicas, not {replicas}")


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            result[key] = _merged(below, value)
        else:
            result[key] = value
    return result
