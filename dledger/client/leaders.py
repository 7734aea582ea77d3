"""Who leads a broker group, as far as this client knows: pure bookkeeping.

Three sources tell, and each can be out of date: the nameserver's id 0 address, the hint in a
"not leader" answer, and our own successes and failures. Rules: a hint or success of a higher term
beats all; an address that has just failed is not believed again on hearsay of the same term (the
followers of a killed leader name it until they have elected another); the nameserver is believed
when it *changes* its mind.
"""

from __future__ import annotations

FAILED_FOR_MS = 1_000  # how long a failure outweighs hearsay


class LeaderBook:
    """The state of knowledge about one broker group. Bounded by `ADDRESSES_MAX` addresses."""

    ADDRESSES_MAX = 32

    def __init__(self, name: str) -> None:
        self.name = name
        self.leader: str | None = None
        self.term = 0  # of the leader believed in; 0 when no one told
        self._registered: str | None = None  # what the nameserver said last
        self._addresses: dict[str, None] = {}
        self._failed_at_ms: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<LeaderBook {self.name} leader={self.leader} term={self.term}>"

    @property
    def addresses(self) -> list[str]:
        """Every replica address known, the leader first."""
        rest = [address for address in self._addresses if address != self.leader]
        return [self.leader, *rest] if self.leader is not None else rest

    def reachable(self, now_ms: int) -> list[str]:
        """Returns the addresses that have not failed just now, the leader first."""
        return [address for address in self.addresses if not self._doubtful(address, now_ms)]

    def registered(self, leader: str | None, addresses: list[str], now_ms: int) -> None:
        """Notes a route: the id 0 address if there is one, and all addresses of the group."""
        hinted = self.leader
        self._addresses = dict.fromkeys(addresses[: self.ADDRESSES_MAX])
        if hinted is not None:
            self._addresses.setdefault(hinted)
        changed, self._registered = leader != self._registered, leader
        if leader is None or self._doubtful(leader, now_ms):
            return
        if self.leader is None or (changed and leader != self.leader):
            self.leader, self.term = leader, 0

    def hinted(self, source: str, leader: str | None, term: int, now_ms: int) -> None:
        """Notes the answer of `source` that it does not lead, and whom it takes for the leader."""
        if self.leader == source:
            self.leader = None
        if leader is None or leader == source or term < self.term:
            return
        if term == self.term and self.leader is not None:
            return
        if term <= self.term and self._doubtful(leader, now_ms):
            return
        if term > self.term and self._doubtful(leader, now_ms) and self.term == 0:
            # Its term was never told us, so this may be the very leadership that just failed.
            self.term = term
            return
        if len(self._addresses) < self.ADDRESSES_MAX:
            self._addresses.setdefault(leader)
        self.leader, self.term = leader, term

    def failed(self, address: str, now_ms: int) -> None:
        """Notes that a request to `address` found no one or was not answered."""
        self._failed_at_ms[address] = now_ms
        if len(self._failed_at_ms) > self.ADDRESSES_MAX:
            del self._failed_at_ms[min(self._failed_at_ms, key=self._failed_at_ms.__getitem__)]
        if self.leader == address:
            self.leader = None

    def succeeded(self, address: str) -> None:
        """Notes that `address` did what only a leader does."""
        self._failed_at_ms.pop(address, None)
        if self.leader != address:
            self._addresses.setdefault(address)
            self.leader = address

    def _doubtful(self, address: str, now_ms: int) -> bool:
        failed_at_ms = self._failed_at_ms.get(address)
        return failed_at_ms is not None and now_ms - failed_at_ms < FAILED_FOR_MS
