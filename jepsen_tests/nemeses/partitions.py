"""F1, F2, F3: cuts of the network, each proved by the packets that it dropped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jepsen_tests.hosts.addressing import RAFT_PORT
from jepsen_tests.hosts.capabilities import Backend
from jepsen_tests.hosts.network import Pair
from jepsen_tests.nemeses.base import (
    FOLLOWER,
    LEADER,
    MINORITY,
    Bench,
    Injection,
    Nemesis,
    wire_proof,
)


def both_ways(left: Iterable[str], right: Iterable[str]) -> list[Pair]:
    """Returns all directed pairs between two sets of hosts."""
    right = list(right)
    return [pair for a in left for b in right for pair in ((a, b), (b, a))]


class _Cut(Nemesis):
    """Common to all: some pairs are cut and later healed."""

    def start_cut(self, bench: Bench, injection: Injection, pairs: Sequence[Pair]) -> Injection:
        injection.details["droppedBefore"] = bench.network.dropped()
        injection.details["token"] = bench.cuts.add(pairs)
        injection.details["pairs"] = len(pairs)
        return injection

    def end(self, bench: Bench, injection: Injection) -> None:
        """Heals."""
        after = bench.network.dropped()
        bench.cuts.remove(injection.details.pop("token"))
        wire_proof(injection, injection.details.pop("droppedBefore"), after)


class IsolateNemesis(_Cut):
    """F1: the target is alone: without its peers, or without anybody (clients and nameserver)."""

    name = "F1"
    title = "partition: isolate"
    targets = (LEADER, LEADER, FOLLOWER, MINORITY)

    def begin(self, bench: Bench) -> Injection:
        """Cuts the target off."""
        group, target = bench.group(), self.choose_target(bench)
        alone = bench.pick(group, target)
        rest = [member for member in bench.cluster.replicas if member not in alone]
        everybody = bench.chance.random() < 0.5
        if everybody:
            rest += [bench.cluster.nameserver_host, *bench.client_hosts]
        variant = f"isolate {target}" + (" from everybody" if everybody else " from its peers")
        return self.start_cut(bench, Injection(variant, alone, group), both_ways(alone, rest))


class TopologyNemesis(_Cut):
    """F2: cuts that no two hosts see alike: a bridge, a ring, one direction only."""

    name = "F2"
    title = "partition: bridge, ring, one-way"
    targets = (LEADER, LEADER, FOLLOWER)

    def begin(self, bench: Bench) -> Injection:
        """Cuts in one of these shapes."""
        group = bench.group()
        target = self.choose_target(bench)
        first = bench.pick(group, target)[0]
        others = [member for member in bench.members(group) if member != first]
        bench.chance.shuffle(others)
        # Followers have nothing to say to each other: a cut that does not touch the leader's links
        # would touch nothing. Those who meet it are the first of the others, or the target itself.
        leader = bench.leader(group)
        others.sort(key=lambda member: member != leader)
        shape = bench.chance.choice(["bridge", "deaf", "mute", "ring", "half-deaf"])
        pairs: list[Pair]
        if shape == "bridge":
            # One host in the middle sees both sides, which do not see each other.
            middle = others.pop()
            half = len(others) // 2
            left, right = [first, *others[:half]], others[half:]
            pairs = both_ways(left, right)
            variant = f"bridge over {middle}"
        elif shape == "ring" and len(others) >= 4:
            ring = [first, *others]
            size = len(ring)
            pairs = [
                (a, b)
                for i, a in enumerate(ring)
                for j, b in enumerate(ring)
                if (i - j) % size not in (0, 1, size - 1)
            ]
            variant = "ring of majorities"
        elif shape == "deaf":
            pairs = [(other, first) for other in others]
            variant = f"{target} hears nobody"
        elif shape == "half-deaf":
            pairs = [(others[0], first)]
            variant = f"{target} does not hear {others[0]}"
        else:
            pairs = [(first, other) for other in others]
            variant = f"nobody hears {target}"
        return self.start_cut(bench, Injection(variant, [first], group), pairs)


class ClientCutNemesis(_Cut):
    """F3: clients on the wrong side, clients alone, or the replicas' own traffic alone."""

    name = "F3"
    title = "partition: clients, Raft port"
    targets = (LEADER, LEADER, FOLLOWER)

    def begin(self, bench: Bench) -> Injection:
        """Cuts in one of these ways."""
        group, target = bench.group(), self.choose_target(bench)
        alone = bench.pick(group, target)
        rest = [member for member in bench.cluster.replicas if member not in alone]
        client = bench.chance.choice(list(bench.client_hosts))
        others = [host for host in bench.client_hosts if host != client]
        shapes = ["client with the minority", "client alone"]
        if bench.capabilities.backend is not Backend.PROXY:
            shapes.append("raft port only")  # takes a packet filter
        shape = bench.chance.choice(shapes)
        injection = Injection(f"{shape} ({target})", [*alone], group)
        if shape == "client with the minority":
            far = [*rest, bench.cluster.nameserver_host, *others]
            injection.targets.append(client)
            return self.start_cut(bench, injection, both_ways([*alone, client], far))
        if shape == "client alone":
            injection.targets = [client]
            far = [*bench.cluster.replicas, bench.cluster.nameserver_host]
            return self.start_cut(bench, injection, both_ways([client], far))
        self.start_cut(bench, injection, [])
        bench.namespaces.cut_port(alone, RAFT_PORT)
        injection.details["port"] = RAFT_PORT
        return injection

    def end(self, bench: Bench, injection: Injection) -> None:
        """Heals."""
        super().end(bench, injection)
        if "port" in injection.details:
            bench.namespaces.cut_port([], RAFT_PORT)


class ToothlessNemesis(IsolateNemesis):
    """K19, a control of the harness itself: says that it isolates a replica and cuts nothing."""

    title = "partition that does not bite"

    def start_cut(self, bench: Bench, injection: Injection, pairs: Sequence[Pair]) -> Injection:
        """Cuts two hosts that never talk to each other."""
        nobody = (bench.cluster.nameserver_host, bench.cluster.nameserver_host)
        return super().start_cut(bench, injection, [nobody])
