"""What every nemesis is made of: the bench it works on, whom it aims at, and its proof."""

from __future__ import annotations

import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jepsen_tests.hosts.capabilities import Capabilities
from jepsen_tests.hosts.cluster import ClusterUnderTest
from jepsen_tests.hosts.network import NamespaceNetwork, Network, Pair
from jepsen_tests.hosts.shell import HarnessError
from jepsen_tests.hosts.volumes import ImageVolumes
from jepsen_tests.nemeses.monitor import Monitor

LEADER, FOLLOWER, MINORITY, MAJORITY, ALL = "leader", "follower", "minority", "majority", "all"
CLIENT = "client"  # the process on a client's host; only some nemeses can aim there
TARGETS = (LEADER, FOLLOWER, MINORITY, MAJORITY, ALL, CLIENT)


class CutTable:
    """The union of the cuts of several nemeses at work."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._cuts: dict[int, frozenset[Pair]] = {}
        self._ids = itertools.count(1)

    def add(self, pairs: Iterable[Pair]) -> int:
        """Adds cuts; returns a token to remove them by."""
        token = next(self._ids)
        self._cuts[token] = frozenset(pairs)
        self._apply()
        return token

    def remove(self, token: int) -> None:
        """Heals what was cut under a token and by nobody else."""
        self._cuts.pop(token, None)
        self._apply()

    def clear(self) -> None:
        """Heals everything."""
        self._cuts.clear()
        self._apply()

    def _apply(self) -> None:
        self._network.cut(frozenset().union(*self._cuts.values()))


@dataclass
class Bench:
    """What nemeses act on.

    Attributes:
        run_id: What everything that this run makes carries in its name.
        client_hosts: Where the workers run.
        worker_pids: Returns the pids of the workers that run, by host.
        target: Aim of every injection, or empty for a choice by chance among those that fit.
    """

    cluster: ClusterUnderTest
    network: Network
    capabilities: Capabilities
    monitor: Monitor
    chance: random.Random
    run_id: str
    client_hosts: Sequence[str]
    worker_pids: Callable[[], Mapping[str, int]]
    target: str = ""
    cuts: CutTable = field(init=False)

    def __post_init__(self) -> None:
        self.cuts = CutTable(self.network)

    def group(self) -> str:
        """Returns a group by chance."""
        return self.chance.choice(self.cluster.plan.group_names())

    def members(self, group: str) -> list[str]:
        """Returns a group's replicas."""
        return self.cluster.plan.replica_ids(group)

    def leader(self, group: str) -> str:
        """Returns a group's leader.

        Raises:
            HarnessError: It has none right now.
        """
        leader = self.cluster.leader(group)
        if leader is None:
            raise HarnessError(f"{group} has no leader to aim at")
        return leader

    def pick(self, group: str, target: str) -> list[str]:
        """Returns the replicas that a target means, the leader first if it is among them."""
        members = self.members(group)
        leader = self.leader(group)
        others = [member for member in members if member != leader]
        self.chance.shuffle(others)
        size = len(members)
        match target:
            case "leader":
                return [leader]
            case "follower":
                return others[:1]
            case "minority":
                everybody = [leader, *others]
                self.chance.shuffle(everybody)
                return everybody[: max(1, (size - 1) // 2)]
            case "majority":
                return [leader, *others[: size // 2]]
            case "all":
                return [leader, *others]
        if target == CLIENT:
            raise HarnessError("this fault cannot be aimed at a client")
        raise HarnessError(f"no such target: {target}; there are {', '.join(TARGETS)}")

    @property
    def namespaces(self) -> NamespaceNetwork:
        """The network, where a nemesis needs more than cuts."""
        if not isinstance(self.network, NamespaceNetwork):
            raise HarnessError("needs network namespaces")
        return self.network

    @property
    def images(self) -> ImageVolumes:
        """The disks, where a nemesis needs images."""
        if not isinstance(self.cluster.volumes, ImageVolumes):
            raise HarnessError("needs disk images")
        return self.cluster.volumes


@dataclass
class Injection:
    """One fault under way; `end` it, then look at `proof` and `bit`."""

    variant: str
    targets: list[str]
    group: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    proof: dict[str, Any] = field(default_factory=dict)
    bit: bool | None = None


class Nemesis(ABC):
    """One fault family. `begin`, wait, `end`; one injection at a time."""

    name: ClassVar[str]
    title: ClassVar[str]
    targets: ClassVar[tuple[str, ...]] = (LEADER, FOLLOWER)
    needs_images: ClassVar[bool] = False
    needs_clock: ClassVar[bool] = False
    hold_s: ClassVar[tuple[float, float]] = (2.5, 4.5)
    settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # what each `broker.toml` must say

    def unavailable(self, capabilities: Capabilities) -> str:
        """Returns why this cannot be done here; empty if it can."""
        return ""

    def choose_target(self, bench: Bench) -> str:
        """Returns the aim of the next injection."""
        if bench.target:
            return bench.target
        return bench.chance.choice(self.targets)

    @abstractmethod
    def begin(self, bench: Bench) -> Injection:
        """Does it.

        Raises:
            HarnessError: It could not be done; nothing is left behind.
        """

    @abstractmethod
    def end(self, bench: Bench, injection: Injection) -> None:
        """Undoes it, and sets `proof` and `bit`."""


def wire_proof(injection: Injection, before: int, after: int) -> None:
    """Proves a cut by packets that it dropped."""
    injection.proof["packetsDropped"] = after - before
    injection.bit = after > before
