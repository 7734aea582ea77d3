"""F6: links that are slow, narrow, lossy or confused. Proof: the packets that suffered."""

from __future__ import annotations

from jepsen_tests.hosts.capabilities import Backend, Capabilities
from jepsen_tests.hosts.link_shape import LinkShape
from jepsen_tests.hosts.network import Pair
from jepsen_tests.nemeses.base import ALL, FOLLOWER, LEADER, Bench, Injection, Nemesis

_LOSS_PERCENT = (5, 10, 20, 30)
_RATES = ("256kbit", "1mbit", "3mbit")
_LOSS, _RATE, _DELAY, _CONFUSION, _DAMAGE, _ALL = (
    "loss",
    "narrow link",
    "delay",
    "duplicates and reordering",
    "damage",
    "everything",
)
# What must have happened to at least one frame for the fault to have bitten.
_EVIDENCE = {
    _DELAY: ("delayed",),
    _CONFUSION: ("duplicated", "overtook"),
    _DAMAGE: ("corrupted",),
    _ALL: ("delayed", "lost", "duplicated"),
}


class LinkNemesis(Nemesis):
    """F6: what the target sends, and half of the time also what it is sent, suffers.

    Each kind in turn: random loss, a narrow link, delay of 20-100 ms with jitter, duplicates and
    reordering, flipped bits (which checksums turn into loss), and all of it together.
    """

    name = "F6"
    title = "loss, delay, narrow and confused links"
    targets = (LEADER, LEADER, FOLLOWER, ALL)
    hold_s = (4.0, 7.0)

    def __init__(self) -> None:
        self._kinds: list[str] = []

    def unavailable(self, capabilities: Capabilities) -> str:
        """Needs a packet filter, `tbf` and raw packets."""
        if capabilities.backend is Backend.PROXY:
            return "needs namespaces"
        return capabilities.tbf or capabilities.packet

    def begin(self, bench: Bench) -> Injection:
        """Degrades the links."""
        group, target = bench.group(), self.choose_target(bench)
        chosen = bench.pick(group, target)
        network = bench.namespaces
        kind = self._next_kind(bench)
        if kind == _LOSS:
            percent = bench.chance.choice(_LOSS_PERCENT)
            injection = Injection(f"{percent} % loss from {target}", chosen, group, {"kind": kind})
            injection.details["lost"] = network.lost()
            network.set_loss(chosen, percent)
            return injection
        if kind == _RATE:
            rate = bench.chance.choice(_RATES)
            for replica in chosen:
                network.set_rate(replica, rate)
            return Injection(f"{rate} from {target}", chosen, group, {"kind": kind})
        shape = _draw_shape(bench, kind)
        both = bench.chance.random() < 0.5
        links = dict.fromkeys(_pairs(bench, chosen, both=both), shape)
        details = {"kind": kind, "before": network.link_counts()}
        network.set_links(links, str(bench.chance.getrandbits(32)))
        where = "to and from" if both else "from"
        injection = Injection(f"{kind} {where} {target}", chosen, group, details)
        injection.proof["shape"] = {name: n for name, n in shape.to_json().items() if n}
        return injection

    def _next_kind(self, bench: Bench) -> str:
        if not self._kinds:
            self._kinds = [_LOSS, _RATE, *_EVIDENCE]
            bench.chance.shuffle(self._kinds)
        return self._kinds.pop()

    def end(self, bench: Bench, injection: Injection) -> None:
        """Mends the links."""
        network = bench.namespaces
        kind = injection.details.pop("kind")
        if kind == _LOSS:
            lost = network.lost() - injection.details.pop("lost")
            network.set_loss((), 0)
            injection.proof["packetsLost"] = lost
            injection.bit = lost > 0
            return
        if kind in _EVIDENCE:
            counts = network.link_counts()
            counts.subtract(injection.details.pop("before"))
            network.set_links({}, "")
            injection.proof["frames"] = {name: n for name, n in counts.items() if n}
            injection.bit = all(counts[name] > 0 for name in _EVIDENCE[kind])
            return
        held = 0
        for replica in injection.targets:
            drops, overlimits = network.queue_drops(replica)
            held += drops + overlimits
            network.set_rate(replica, "")
        injection.proof["packetsHeldBack"] = held
        injection.bit = held > 0


def _draw_shape(bench: Bench, kind: str) -> LinkShape:
    chance = bench.chance
    delay_ms = chance.uniform(20, 100)
    jitter_ms = delay_ms * chance.uniform(0.1, 0.9)
    if kind == _DELAY:
        return LinkShape(delay_ms=delay_ms, jitter_ms=jitter_ms)
    if kind == _CONFUSION:
        # Only frames under way can be overtaken: a little delay keeps some there.
        duplicate, reorder = chance.uniform(0.02, 0.1), chance.uniform(0.05, 0.25)
        return LinkShape(delay_ms=10, jitter_ms=5, duplicate=duplicate, reorder=reorder)
    if kind == _DAMAGE:
        return LinkShape(corrupt=chance.uniform(0.01, 0.1))
    return LinkShape(
        delay_ms=20, jitter_ms=10, loss=0.05, duplicate=0.05, reorder=0.05, corrupt=0.01
    )


def _pairs(bench: Bench, chosen: list[str], *, both: bool) -> list[Pair]:
    """Returns the directed links between the chosen and all who talk to them."""
    partners = [*bench.cluster.replicas, *bench.client_hosts]
    pairs = {(one, other) for one in chosen for other in partners if one != other}
    if both:
        pairs |= {(other, one) for one, other in pairs}
    return sorted(pairs)
