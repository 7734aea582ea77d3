"""Who of a group reads which queue: a pure rule that every member computes alike.

Nobody coordinates the members of a group. Each asks for the list of members, sorts it and the
queues in the same way and takes its share; so all must use the same strategy. For a moment after a
change two members may hold one queue; then messages come twice, never not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dledger.model import MessageQueue

Strategy = Callable[[Sequence[MessageQueue], Sequence[str], str], list[MessageQueue]]


def allocate_average(
    queues: Sequence[MessageQueue], members: Sequence[str], me: str
) -> list[MessageQueue]:
    """Returns my share in one consecutive run; shares differ by at most one queue.

    Args:
        queues: All queues of the topic, in any order.
        members: Client ids of the group, in any order.
        me: My own client id. A member that is not in the list gets nothing: the brokers do not
            know it yet, so the others do not count it.

    Source:
        Allocation strategy `AVG` of the RocketMQ clients.
    """
    order = sorted(set(members))
    if me not in order:
        return []
    ranked = sorted(set(queues))
    mine, spare = order.index(me), len(ranked) % len(order)
    if len(ranked) <= len(order):
        size, start = 1, mine
    else:
        size = len(ranked) // len(order) + (1 if mine < spare else 0)
        start = mine * size + (0 if mine < spare else spare)
    return ranked[start : start + size]


def allocate_circle(
    queues: Sequence[MessageQueue], members: Sequence[str], me: str
) -> list[MessageQueue]:
    """Returns every n-th queue for n members, like cards dealt in turn (`AVG_BY_CIRCLE`)."""
    order = sorted(set(members))
    if me not in order:
        return []
    return sorted(set(queues))[order.index(me) :: len(order)]


def strategy(name: str) -> Strategy:
    """Returns the strategy of that wire name: `AVG` or `AVG_BY_CIRCLE`."""
    return {"AVG": allocate_average, "AVG_BY_CIRCLE": allocate_circle}[name]


@dataclass(frozen=True, slots=True)
class Change:
    """What a rebalance takes away and gives, each sorted."""

    revoked: list[MessageQueue]
    added: list[MessageQueue]


def difference(held: Iterable[MessageQueue], wanted: Iterable[MessageQueue]) -> Change:
    """Returns what to give up and what to take to get from `held` to `wanted`."""
    before, after = set(held), set(wanted)
    return Change(sorted(before - after), sorted(after - before))
