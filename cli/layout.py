"""A local cluster's plan: which processes, which ports, which files. Pure but for reading and
writing `cluster.json` and the configuration of each process.

    DIR/cluster.json                     the plan; `up` on an existing directory follows it
    DIR/nameserver-0/{pid,nameserver.log,key-values.json}
    DIR/broker-a-0/{broker.toml,pid,broker.log,log/,state/}
"""

from __future__ import annotations

import json
import os
import string
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from cli.errors import CommandError, UsageError
from dledger.config import render_toml

HOST = "127.0.0.1"
FORMAT_VERSION = 1
GROUPS_MAX = 26
NAMESERVERS_MAX = 9
REPLICA_COUNTS = (1, 3, 5)
DEFAULT_PORT_BASE = 9876


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """What the user asks for.

    Attributes:
        port_base: The nameservers' ports start here; the brokers' follow, two each.
        settings: Further keys of every `broker.toml`, nested; for tests and measurements.
    """

    groups: int = 1
    replicas: int = 3
    nameservers: int = 1
    port_base: int = DEFAULT_PORT_BASE
    cluster_name: str = "DefaultCluster"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.groups <= GROUPS_MAX:
            raise UsageError(f"--groups must lie in 1..{GROUPS_MAX}, not {self.groups}")
        if self.replicas not in REPLICA_COUNTS:
            raise UsageError(f"--replicas must be 1, 3 or 5, not {self.replicas}")
        if not 1 <= self.nameservers <= NAMESERVERS_MAX:
            raise UsageError(f"--nameservers must lie in 1..{NAMESERVERS_MAX}")
        if not 1 <= self.port_base <= 65_536 - self.port_count:
            last = 65_536 - self.port_count
            raise UsageError(f"--port-base must lie in 1..{last} for {self.port_count} ports")

    @property
    def port_count(self) -> int:
        """Ports that the cluster takes, one after the other."""
        return self.nameservers + 2 * self.groups * self.replicas


@dataclass(frozen=True, kw_only=True)
class NameserverPlace:
    """One nameserver process."""

    id: str
    address: str


@dataclass(frozen=True, kw_only=True)
class ReplicaPlace:
    """One broker process."""

    id: str
    address: str
    raft_address: str


@dataclass(frozen=True, kw_only=True)
class GroupPlace:
    """The replicas of one broker group."""

    name: str
    replicas: tuple[ReplicaPlace, ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """All processes of a cluster on this machine."""

    cluster_name: str
    spec: ClusterSpec
    nameservers: tuple[NameserverPlace, ...]
    groups: tuple[GroupPlace, ...]

    @property
    def nameserver_addresses(self) -> str:
        """The nameservers as clients take them: `host:port;host:port`."""
        return ";".join(place.address for place in self.nameservers)

    def replicas(self) -> Iterator[tuple[GroupPlace, ReplicaPlace]]:
        """Yields every replica with its group."""
        for group in self.groups:
            for replica in group.replicas:
                yield group, replica


def plan(spec: ClusterSpec) -> Layout:
    """Returns the processes and ports for what the user asks for."""
    port = spec.port_base
    nameservers = tuple(
        NameserverPlace(id=f"nameserver-{number}", address=f"{HOST}:{port + number}")
        for number in range(spec.nameservers)
    )
    port += spec.nameservers
    groups: list[GroupPlace] = []
    for letter in string.ascii_lowercase[: spec.groups]:
        groups.append(_group(letter, spec.replicas, port))
        port += 2 * spec.replicas
    return Layout(
        cluster_name=spec.cluster_name, spec=spec, nameservers=nameservers, groups=tuple(groups)
    )


def with_group(layout: Layout, replicas: int) -> Layout:
    """Returns the plan with one more broker group, on the ports that follow.

    Raises:
        UsageError: An impossible number of replicas, or no name or port is left.
    """
    spec = replace(layout.spec, groups=layout.spec.groups + 1)
    if replicas not in REPLICA_COUNTS:
        raise UsageError(f"--replicas must be 1, 3 or 5, not {replicas}")
    port = _next_port(layout, 2 * replicas)
    group = _group(string.ascii_lowercase[len(layout.groups)], replicas, port)
    return replace(layout, spec=spec, groups=(*layout.groups, group))


def with_replica(layout: Layout, group_name: str) -> tuple[Layout, ReplicaPlace]:
    """Returns the plan with one more replica of a group, and that replica.

    Raises:
        UsageError: There is no such group, or no port is left.
    """
    group = find_group(layout, group_name)
    taken = {replica.id for replica in group.replicas}
    names = (f"{group_name}-{number}" for number in count())
    port = _next_port(layout, 2)
    replica = ReplicaPlace(
        id=next(name for name in names if name not in taken),
        address=f"{HOST}:{port}",
        raft_address=f"{HOST}:{port + 1}",
    )
    return _with_replicas(layout, group, (*group.replicas, replica)), replica


def without_replica(layout: Layout, group_name: str, replica_id: str) -> Layout:
    """Returns the plan without a replica of a group."""
    group = find_group(layout, group_name)
    others = tuple(replica for replica in group.replicas if replica.id != replica_id)
    return _with_replicas(layout, group, others)


def find_group(layout: Layout, name: str) -> GroupPlace:
    """Returns the group of that name.

    Raises:
        UsageError: There is none.
    """
    for group in layout.groups:
        if group.name == name:
            return group
    names = ", ".join(group.name for group in layout.groups)
    raise UsageError(f"there is no broker group {name}; known: {names}")


def _with_replicas(layout: Layout, group: GroupPlace, replicas: tuple[ReplicaPlace, ...]) -> Layout:
    changed = replace(group, replicas=replicas)
    groups = tuple(changed if other is group else other for other in layout.groups)
    return replace(layout, groups=groups)


def _next_port(layout: Layout, count_: int) -> int:
    """Returns the first of so many ports after those in use."""
    used = [place.address for place in layout.nameservers]
    used += [address for _, r in layout.replicas() for address in (r.address, r.raft_address)]
    port = 1 + max(int(address.rpartition(":")[2]) for address in used)
    if port + count_ > 65_536:
        raise UsageError(f"no {count_} ports are left from {port} on")
    return port


def _group(letter: str, replicas: int, port: int) -> GroupPlace:
    return GroupPlace(
        name=f"broker-{letter}",
        replicas=tuple(
            ReplicaPlace(
                id=f"broker-{letter}-{number}",
                address=f"{HOST}:{port + 2 * number}",
                raft_address=f"{HOST}:{port + 2 * number + 1}",
            )
            for number in range(replicas)
        ),
    )


def layout_path(directory: Path) -> Path:
    """Returns where a data directory keeps its plan."""
    return directory / "cluster.json"


def save_layout(
    directory: Path, layout: Layout, *, new_replicas: Collection[str] | None = None
) -> None:
    """Writes the plan and each broker's configuration; the plan last, and durably.

    Args:
        directory: The data directory.
        layout: The plan.
        new_replicas: Only these get a configuration; that of others may have been edited. All if
            None.

    Raises:
        CommandError: The directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for place in layout.nameservers:
            (directory / place.id).mkdir(exist_ok=True)
        if new_replicas is None:
            new_replicas = [replica.id for _, replica in layout.replicas()]
        for group, replica in layout.replicas():
            if replica.id not in new_replicas:
                continue
            home = directory / replica.id
            home.mkdir(exist_ok=True)
            shared = _shared_address(directory, group, new_replicas)
            text = render_toml(broker_settings(layout, group, replica, home, shared))
            (home / "broker.toml").write_text(text, encoding="utf-8")
        content = {"version": FORMAT_VERSION, **asdict(layout)}
        temporary = directory / "cluster.json.new"
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(layout_path(directory))
    except OSError as error:
        raise CommandError(f"cannot write {directory}: {error.strerror or error}") from error


def load_layout(directory: Path) -> Layout | None:
    """Returns the plan of a data directory, or `None` if it holds none.

    Raises:
        CommandError: There is one, but it cannot be read.
    """
    path = layout_path(directory)
    try:
        content = json.loads(path.read_bytes())
        if content["version"] != FORMAT_VERSION:
            raise CommandError(f"{path} has version {content['version']}, not {FORMAT_VERSION}")
        return Layout(
            cluster_name=content["cluster_name"],
            spec=ClusterSpec(**content["spec"]),
            nameservers=tuple(NameserverPlace(**place) for place in content["nameservers"]),
            groups=tuple(
                GroupPlace(
                    name=group["name"],
                    replicas=tuple(ReplicaPlace(**place) for place in group["replicas"]),
                )
                for group in content["groups"]
            ),
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{path} is not a cluster plan: {error}") from error


def broker_settings(
    layout: Layout,
    group: GroupPlace,
    replica: ReplicaPlace,
    home: Path,
    shared_address: str | None,
) -> dict[str, Any]:
    """Returns the content of one replica's `broker.toml`."""
    settings: dict[str, Any] = {
        "cluster_name": layout.cluster_name,
        "broker_name": group.name,
        "replica_id": replica.id,
        "data_directory": str(home.resolve()),
        "listen_host": HOST,
        **({"shared_address": shared_address} if shared_address else {}),
        "nameservers": [place.address for place in layout.nameservers],
        "replicas": [asdict(place) for place in group.replicas],
    }
    return {**settings, **layout.spec.settings}


def _shared_address(
    directory: Path, group: GroupPlace, new_replicas: Collection[str]
) -> str | None:
    """Returns where official clients find whoever leads a group.

    What the group's other replicas have, `None` included: the replica that gave it its port may
    have been removed since, and somebody may have chosen another. For a new group the port of the
    first replica, on another loopback address: free wherever that one is. Where there is no such
    address (macOS), the leader goes without.
    """
    for other in group.replicas:
        if other.id in new_replicas:
            continue
        path = directory / other.id / "broker.toml"
        try:
            settings = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise CommandError(f"cannot read {path}: {error}") from error
        address: str | None = settings.get("shared_address")
        return address
    return f"127.0.0.2:{group.replicas[0].address.rpartition(':')[2]}"
