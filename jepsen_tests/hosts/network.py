"""Hosts on a bridge, as network namespaces: links to cut, thin out and slow down.

    dl<run>s          the bridge with one port per host and an nft table; no address, no route out
    dl<run>h1 ...     one namespace per host, 10.77.0.1 ..., one link `e0` to the bridge

Every namespace carries the run's id, so that cleaning up touches nothing of anybody else's. Links,
bridge, tables and queues die with their namespaces.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from jepsen_tests.hosts.bad_links import BadLinks
from jepsen_tests.hosts.cleanup import CleanUp
from jepsen_tests.hosts.link_shape import LinkShape
from jepsen_tests.hosts.namespace_thread import NamespaceThread
from jepsen_tests.hosts.packet_switch import detour_port
from jepsen_tests.hosts.shell import HarnessError, run_tool, try_tool

T = TypeVar("T")

CONTROL = "control"
_PREFIX = "10.77.0."
_NETNS_DIRECTORY = Path("/run/netns")
_TABLE = """
table bridge dl {
  set cuts { type ifname . ifname; }
  counter dropped { }
  counter lost { }
  chain f {
    type filter hook forward priority 0; policy accept;
    ether type ip meta iifname . meta oifname @cuts counter name dropped drop
  }
}
"""

Pair = tuple[str, str]


class Network(Protocol):
    """Named hosts and the links between them."""

    kind: str

    def address(self, host: str) -> str:
        """Returns a host's IP address."""
        ...

    def command_prefix(self, host: str) -> tuple[str, ...]:
        """Returns what stands before a command so that it runs on the host."""
        ...

    def cut(self, pairs: Iterable[Pair]) -> None:
        """Drops what goes from the first to the second host of each pair; replaces older cuts."""
        ...

    def dropped(self) -> int:
        """Returns how many packets (or, with proxies, chunks) cuts have kept back so far."""
        ...

    def call(self, function: Callable[[], T]) -> T:
        """Calls a function in a thread on the control host, which no cut ever touches."""
        ...

    def reset(self) -> None:
        """Ends every cut and whatever else is bad about links."""
        ...


class NamespaceNetwork:
    """Hosts as network namespaces. Not thread-safe, but for `dropped` and `call`."""

    kind = "netns"

    def __init__(self, run_id: str, hosts: Sequence[str], clean_up: CleanUp) -> None:
        """Makes the namespaces.

        Args:
            run_id: A few letters and digits that only this run has.
            hosts: Names; the control host is added.

        Raises:
            HarnessError: A step failed. The clean-up removes what was made.
        """
        if len(hosts) > 200:
            raise HarnessError(f"at most 200 hosts, not {len(hosts)}")
        self._switch = f"dl{run_id}s"
        self._numbers = {name: number for number, name in enumerate([*hosts, CONTROL], start=1)}
        self._spaces = {name: f"dl{run_id}h{number}" for name, number in self._numbers.items()}
        self._make_switch(clean_up)
        for name in self._numbers:
            self._make_host(name, clean_up)
        self._nft(_TABLE)
        self._lossy: tuple[tuple[str, ...], int] = ((), 0)
        self._closed: tuple[tuple[str, int], ...] = ()
        self._links = BadLinks(self._switch, self._spaces.values(), clean_up)
        self._control = NamespaceThread(_NETNS_DIRECTORY / self._spaces[CONTROL])
        clean_up.add("control thread", self._control.close)

    def _make_switch(self, clean_up: CleanUp) -> None:
        switch = self._switch
        run_tool(["ip", "netns", "add", switch])
        clean_up.add(switch, lambda: run_tool(["ip", "netns", "del", switch]))
        run_tool(["ip", "-n", switch, "link", "set", "lo", "up"])
        bridge = ["link", "add", "br0", "type", "bridge", "stp_state", "0", "forward_delay", "0"]
        run_tool(["ip", "-n", switch, *bridge])
        run_tool(["ip", "-n", switch, "link", "set", "br0", "up"])

    def _make_host(self, name: str, clean_up: CleanUp) -> None:
        space, port, switch = self._spaces[name], self.port(name), self._switch
        run_tool(["ip", "netns", "add", space])
        clean_up.add(space, lambda: run_tool(["ip", "netns", "del", space]))
        peer = ["type", "veth", "peer", "name", port, "netns", switch]
        run_tool(["ip", "link", "add", "e0", "netns", space, *peer])
        run_tool(["ip", "-n", switch, "link", "set", port, "master", "br0", "up"])
        steps = f"link set lo up\naddr add {self.address(name)}/24 dev e0\nlink set e0 up\n"
        run_tool(["ip", "-n", space, "-batch", "-"], stdin=steps)

    # --- Network --------------------------------------------------------------------------------

    def address(self, host: str) -> str:
        """Returns a host's IP address."""
        return f"{_PREFIX}{self._numbers[host]}"

    def port(self, host: str) -> str:
        """Returns the name of a host's port on the bridge."""
        return f"p{self._numbers[host]}"

    def namespace(self, host: str) -> str:
        """Returns the name of a host's namespace."""
        return self._spaces[host]

    def command_prefix(self, host: str) -> tuple[str, ...]:
        """Returns what stands before a command so that it runs on the host."""
        # Not `ip netns exec`: that makes a mount namespace too, which would pin mounted images.
        return ("nsenter", f"--net={_NETNS_DIRECTORY / self._spaces[host]}", "--")

    def cut(self, pairs: Iterable[Pair]) -> None:
        """Drops what goes from the first to the second host of each pair, at one instant."""
        elements = sorted(
            f'"{from_port}" . "{to_port}"'
            for a, b in set(pairs)
            for from_port in self._ports(a)
            for to_port in self._ports(b)
        )
        script = "flush set bridge dl cuts\n"
        if elements:
            script += f"add element bridge dl cuts {{ {', '.join(elements)} }}\n"
        self._nft(script)

    def dropped(self) -> int:
        """Returns how many packets cuts have dropped so far."""
        return self._counter("dropped")

    def call(self, function: Callable[[], T]) -> T:
        """Calls a function in a thread on the control host, which no cut ever touches."""
        return self._control.call(function)

    # --- degraded links ---------------------------------------------------------------------------

    def set_loss(self, hosts: Iterable[str], percent: int) -> None:
        """Drops this share of what the hosts send; 0 ends it."""
        self._lossy = (tuple(hosts), percent)
        self._apply_rules()

    def lost(self) -> int:
        """Returns how many packets loss has taken so far."""
        return self._counter("lost")

    def cut_port(self, hosts: Iterable[str], tcp_port: int) -> None:
        """Drops what goes to or from one TCP port of the hosts; no host ends it."""
        self._closed = tuple((host, tcp_port) for host in hosts)
        self._apply_rules()

    def set_links(self, links: Mapping[Pair, LinkShape], seed: str) -> None:
        """Makes what goes from the first to the second host of each pair late, doubled and so on.

        Replaces what was set before; nothing makes all links well.

        Raises:
            HarnessError: It could not be done.
        """
        by_port = {(self.port(a), self.address(b)): shape for (a, b), shape in links.items()}
        self._links.set(by_port, seed)

    def link_counts(self) -> Counter[str]:
        """Returns what has happened to frames on bad links so far: `seen`, `delayed`, ..."""
        return self._links.counts()

    def set_rate(self, host: str, rate: str) -> None:
        """Limits what a host sends, e.g. `1mbit`; empty ends it."""
        space = self._spaces[host]
        try_tool(["tc", "-n", space, "qdisc", "del", "dev", "e0", "root"])
        if rate:
            shape = ["tbf", "rate", rate, "burst", "8kb", "latency", "400ms"]
            run_tool(["tc", "-n", space, "qdisc", "add", "dev", "e0", "root", *shape])

    def queue_drops(self, host: str) -> tuple[int, int]:
        """Returns (packets dropped, packets held back) by a host's rate limit."""
        space = self._spaces[host]
        text = run_tool(["tc", "-n", space, "-s", "-j", "qdisc", "show", "dev", "e0"])
        found: dict[str, Any] = next(
            (q for q in json.loads(text or "[]") if q.get("kind") == "tbf"), {}
        )
        return int(found.get("drops", 0)), int(found.get("overlimits", 0))

    def reset(self) -> None:
        """Ends every cut and every degradation."""
        self.cut(())
        self._lossy, self._closed = ((), 0), ()
        self._apply_rules()
        self.set_links({}, "")
        for host in self._numbers:
            try_tool(["tc", "-n", self._spaces[host], "qdisc", "del", "dev", "e0", "root"])

    # --- inside -----------------------------------------------------------------------------------

    def _ports(self, host: str) -> tuple[str, str]:
        """Returns the names that a host's port on the bridge may have right now."""
        port = self.port(host)
        return port, detour_port(port)

    def _apply_rules(self) -> None:
        """Writes all rules anew, at one instant: cuts, closed ports, loss."""
        # IP only: a lost ARP reply would cut both directions of a one-way cut, and for a second.
        rule = "add rule bridge dl f ether type ip "
        cuts = "meta iifname . meta oifname @cuts counter name dropped drop"
        script = f"flush chain bridge dl f\n{rule}{cuts}\n"
        for host, tcp_port in self._closed:
            for side, kind in (("daddr", "dport"), ("saddr", "sport")):
                match = f"ip {side} {self.address(host)} tcp {kind} {tcp_port}"
                script += f"{rule}{match} counter name dropped drop\n"
        hosts, percent = self._lossy
        if hosts and percent:
            ports = ", ".join(f'"{port}"' for host in hosts for port in self._ports(host))
            match = f"meta iifname {{ {ports} }} numgen random mod 100 < {percent}"
            script += f"{rule}{match} counter name lost drop\n"
        self._nft(script)

    def _nft(self, script: str) -> None:
        run_tool(["ip", "netns", "exec", self._switch, "nft", "-f", "-"], stdin=script)

    def _counter(self, name: str) -> int:
        command = ["ip", "netns", "exec", self._switch, "nft", "-j", "list", "counter", "bridge"]
        entries = json.loads(run_tool([*command, "dl", name]))["nftables"]
        return sum(int(e["counter"]["packets"]) for e in entries if "counter" in e)
