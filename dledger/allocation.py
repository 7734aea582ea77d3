"""Who of a group reads which queue: a pure rule that every member, or a broker, computes alike.

Nobody coordinates the members of a group. Each asks for the list of members, sorts it and the
queues in the same way and takes its share; so all must use the same strategy. For a moment after a
change two members may hold one queue; then messages come twice, never not at all.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from dledger.codes import RETRY_PREFIX
from dledger.model import MessageQueue

STRATEGIES = ("AVG", "AVG_BY_CIRCLE", "CONSISTENT_HASH", "MACHINE_ROOM", "CONFIG")
VIRTUAL_NODES = 10

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


def allocate_consistent_hash(
    queues: Sequence[MessageQueue],
    members: Sequence[str],
    me: str,
    *,
    virtual_nodes: int = VIRTUAL_NODES,
) -> list[MessageQueue]:
    """Returns the queues for which I am the next member on a ring of hashes (`CONSISTENT_HASH`).

    A member that comes or goes moves only the queues it takes or had; shares may differ a lot.

    Args:
        queues, members, me: As `allocate_average`.
        virtual_nodes: Places of each member on the ring; the same for all members.
    """
    order = sorted(set(members))
    if me not in order:
        return []
    # Of members with the same hash the later one has the place, as in the RocketMQ clients.
    ring = {_ring_hash(f"{name}-{n}"): name for name in order for n in range(virtual_nodes)}
    places = sorted(ring)

    def owner(queue: MessageQueue) -> str:
        at = bisect.bisect_left(places, _ring_hash(_java_text(queue)))
        return ring[places[at % len(places)]]

    return [queue for queue in sorted(set(queues)) if owner(queue) == me]


def allocate_machine_room(
    queues: Sequence[MessageQueue], members: Sequence[str], me: str, *, rooms: Collection[str]
) -> list[MessageQueue]:
    """Returns my share of the queues in some rooms only (`MACHINE_ROOM`).

    A queue lies in the room that its broker's name begins with: `room@broker`. Nobody of the group
    reads the others.

    Args:
        queues, members, me: As `allocate_average`.
        rooms: The rooms whose queues this group reads; the same for all members.
    """
    order = sorted(set(members))
    if me not in order:
        return []
    near = [queue for queue in sorted(set(queues)) if _room(queue) in rooms]
    size, spare = divmod(len(near), len(order))
    mine = order.index(me)
    share = near[mine * size : (mine + 1) * size]
    if mine < spare:
        share.append(near[size * len(order) + mine])
    return share


def allocate_configured(
    queues: Sequence[MessageQueue],
    members: Sequence[str],
    me: str,
    *,
    configured: Collection[MessageQueue],
) -> list[MessageQueue]:
    """Returns the queues that I was told to read, whoever else is there (`CONFIG`).

    The group's retry topic, whose queues nobody can name beforehand, is shared out evenly.
    """
    if queues and all(queue.topic.startswith(RETRY_PREFIX) for queue in queues):
        return allocate_average(queues, members, me)
    return sorted(set(queues).intersection(configured))


def strategy(
    name: str,
    *,
    virtual_nodes: int = VIRTUAL_NODES,
    rooms: Collection[str] = (),
    configured: Collection[MessageQueue] = (),
) -> Strategy:
    """Returns the strategy of a wire name.

    Args:
        name: One of `STRATEGIES`.
        virtual_nodes: For `CONSISTENT_HASH`.
        rooms: For `MACHINE_ROOM`.
        configured: For `CONFIG`.
    """
    strategies: dict[str, Strategy] = {
        "AVG": allocate_average,
        "AVG_BY_CIRCLE": allocate_circle,
        "CONSISTENT_HASH": partial(allocate_consistent_hash, virtual_nodes=virtual_nodes),
        "MACHINE_ROOM": partial(allocate_machine_room, rooms=frozenset(rooms)),
        "CONFIG": partial(allocate_configured, configured=frozenset(configured)),
    }
    return strategies[name]


def _ring_hash(key: str) -> int:
    return int.from_bytes(hashlib.md5(key.encode(), usedforsecurity=False).digest()[:4], "big")


def _java_text(queue: MessageQueue) -> str:
    """Returns a queue as text in the RocketMQ clients' form, which they hash."""
    return (
        f"MessageQueue [topic={queue.topic}, brokerName={queue.broker_name}, "
        f"queueId={queue.queue_id}]"
    )


def _room(queue: MessageQueue) -> str | None:
    parts = queue.broker_name.split("@")
    return parts[0] if len(parts) == 2 else None


@dataclass(frozen=True, slots=True)
class Change:
    """What a rebalance takes away and gives, each sorted."""

    revoked: list[MessageQueue]
    added: list[MessageQueue]


def difference(held: Iterable[MessageQueue], wanted: Iterable[MessageQueue]) -> Change:
    """Returns what to give up and what to take to get from `held` to `wanted`."""
    before, after = set(held), set(wanted)
    return Change(sorted(before - after), sorted(after - before))
