"""F6: links that lose packets or are slow. Proof: the packets lost or held back."""

from __future__ import annotations

from jepsen_tests.hosts.capabilities import Backend, Capabilities
from jepsen_tests.nemeses.base import ALL, FOLLOWER, LEADER, Bench, Injection, Nemesis

_LOSS_PERCENT = (5, 10, 20, 30)
_RATES = ("256kbit", "1mbit", "3mbit")


class LinkNemesis(Nemesis):
    """F6: random loss on what hosts send, or a narrow link."""

    name = "F6"
    title = "loss and narrow links"
    targets = (LEADER, LEADER, FOLLOWER, ALL)
    hold_s = (4.0, 7.0)

    def unavailable(self, capabilities: Capabilities) -> str:
        """Needs a packet filter, and `tbf`."""
        if capabilities.backend is Backend.PROXY:
            return "needs namespaces"
        return capabilities.tbf

    def begin(self, bench: Bench) -> Injection:
        """Degrades the links."""
        group, target = bench.group(), self.choose_target(bench)
        chosen = bench.pick(group, target)
        network = bench.namespaces
        if bench.chance.random() < 0.5:
            percent = bench.chance.choice(_LOSS_PERCENT)
            injection = Injection(f"{percent} % loss from {target}", chosen, group)
            injection.details["lost"] = network.lost()
            network.set_loss(chosen, percent)
            return injection
        rate = bench.chance.choice(_RATES)
        for replica in chosen:
            network.set_rate(replica, rate)
        return Injection(f"{rate} from {target}", chosen, group)

    def end(self, bench: Bench, injection: Injection) -> None:
        """Mends the links."""
        network = bench.namespaces
        if "lost" in injection.details:
            lost = network.lost() - injection.details.pop("lost")
            network.set_loss((), 0)
            injection.proof["packetsLost"] = lost
            injection.bit = lost > 0
            return
        held = 0
        for replica in injection.targets:
            drops, overlimits = network.queue_drops(replica)
            held += drops + overlimits
            network.set_rate(replica, "")
        injection.proof["packetsHeldBack"] = held
        injection.bit = held > 0
