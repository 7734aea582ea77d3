"""Links between replicas that a test can cut.

A cut link swallows messages in both directions, as a network does that drops packets: neither
side's connection is reset, so nobody learns of it but by silence. Raft sends what was swallowed
again later. Cutting inside the transport needs no privileges and no proxy on the way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dledger.errors import InvalidParameterError
from dledger.raft.transport import TcpTransport


class Links:
    """Which pairs of replicas do not hear each other. Any thread."""

    def __init__(self) -> None:
        # Exchanged as a whole: the replicas' threads read it without a lock.
        self._cut: frozenset[frozenset[str]] = frozenset()

    def __repr__(self) -> str:
        return f"<Links cut={sorted(tuple(sorted(pair)) for pair in self._cut)}>"

    def is_cut(self, one: str, other: str) -> bool:
        """Whether two replicas do not hear each other."""
        return bool(self._cut) and frozenset((one, other)) in self._cut

    def cut(self, islands: Iterable[Iterable[str]], everybody: Iterable[str]) -> None:
        """Cuts every link between different islands, and heals every other link.

        Args:
            islands: Ids of replicas that keep hearing each other.
            everybody: All replicas; those in no island form one more.

        Raises:
            InvalidParameterError: An unknown replica, or one in two islands. Nothing was changed.
        """
        self._cut = links_between(islands, everybody)

    def heal(self) -> None:
        """Lets everybody hear everybody."""
        self._cut = frozenset()


def links_between(
    islands: Iterable[Iterable[str]], everybody: Iterable[str]
) -> frozenset[frozenset[str]]:
    """Returns the pairs that lie in different islands. Pure; see `Links.cut`."""
    known = set(everybody)
    island_of: dict[str, int] = {}
    for number, island in enumerate(islands):
        for replica_id in island:
            if replica_id not in known:
                raise InvalidParameterError(f"the cluster has no replica {replica_id}")
            if replica_id in island_of:
                raise InvalidParameterError(f"{replica_id} is named in two islands")
            island_of[replica_id] = number
    return frozenset(
        frozenset((one, other))
        for one in known
        for other in known
        if island_of.get(one, -1) != island_of.get(other, -1)
    )


def transport_with(links: Links) -> type[TcpTransport]:
    """Returns a transport that obeys `links`."""

    class CuttableTransport(TcpTransport):
        """Swallows what a cut link would carry, when it is sent and when it arrives."""

        def send(self, peer_id: str, message: dict[str, Any]) -> bool:
            """Sends a message; on a cut link it is lost, which the sender cannot know."""
            if links.is_cut(self.replica_id, peer_id):
                return True
            return super().send(peer_id, message)

        def deliver(self, peer_id: str, message: dict[str, Any]) -> None:
            """Hands a message to the node unless it was under way when the link was cut."""
            if not links.is_cut(self.replica_id, peer_id):
                super().deliver(peer_id, message)

    return CuttableTransport
