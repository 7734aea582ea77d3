"""The route table against a small model, under any order of events."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dledger.errors import TopicNotFoundError
from dledger.model import TopicConfig
from nameserver.route_table import (
    DataVersion,
    Registration,
    RouteLimits,
    RouteTable,
    StaleRegistrationError,
)

ADDRESSES = ["h:1", "h:2", "h:3"]
EXPIRY_MS = 100


class RouteTableModel(RuleBasedStateMachine):
    """One group of three replicas. Each term has one winner, as Raft grants; messages may be late,
    doubled and out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.table = RouteTable(RouteLimits(expiry_ms=EXPIRY_MS))
        self.now_ms = 0
        self.winners: dict[int, str] = {}
        self.connections: dict[str, int] = {}
        self.seen: dict[str, int] = {}
        self.term_shown = 0

    def register(self, broker_id: int, address: str, term: int, connection_id: int) -> bool:
        try:
            self.table.register(
                Registration(
                    cluster="C",
                    broker_name="a",
                    broker_id=broker_id,
                    address=address,
                    term=term,
                    connection_id=connection_id,
                    topics={f"topic-{term}": TopicConfig(name=f"topic-{term}")},
                    data_version=DataVersion(counter=term),
                ),
                self.now_ms,
            )
        except StaleRegistrationError:
            return False
        self.connections[address] = connection_id
        self.seen[address] = self.now_ms
        return True

    @rule(term=st.integers(1, 8), address=st.sampled_from(ADDRESSES), connection=st.integers(1, 4))
    def leader_registers(self, term: int, address: str, connection: int) -> None:
        address = self.winners.setdefault(term, address)
        before = self.shown()
        accepted = self.register(0, address, term, connection)
        if accepted:
            assert term >= self.term_shown
            self.term_shown = term
            for other in [a for a in self.connections if a != address]:
                if other == before.get(0):
                    self.forget(other)
            assert self.shown()[0] == address
            assert self.table.topics() == [f"topic-{term}"]
        else:
            assert self.shown() == before

    @rule(address=st.sampled_from(ADDRESSES), term=st.integers(1, 8), connection=st.integers(1, 4))
    def follower_registers(self, address: str, term: int, connection: int) -> None:
        before = self.shown()
        if self.register(ADDRESSES.index(address) + 1, address, term, connection):
            assert self.shown()[ADDRESSES.index(address) + 1] == address
        else:
            assert before[0] == address
            assert self.shown() == before

    @rule(connection=st.integers(1, 4))
    def connection_lost(self, connection: int) -> None:
        lost = {member.address for member in self.table.connection_lost(connection)}
        assert lost == {a for a, c in self.connections.items() if c == connection}
        for address in lost:
            self.forget(address)

    @rule(step=st.integers(1, 120))
    def time_passes(self, step: int) -> None:
        self.now_ms += step
        gone = {member.address for member in self.table.expire(self.now_ms)}
        assert gone == {a for a, seen in self.seen.items() if seen + EXPIRY_MS <= self.now_ms}
        for address in gone:
            self.forget(address)

    @rule(address=st.sampled_from(ADDRESSES))
    def unregisters(self, address: str) -> None:
        for broker_id in [i for i, a in self.shown().items() if a == address]:
            assert self.table.unregister("a", broker_id, address)
            self.forget(address)

    @invariant()
    def every_live_address_is_shown_once(self) -> None:
        shown = list(self.shown().values())
        assert sorted(shown) == sorted(self.connections)
        assert len(set(shown)) == len(shown)

    @invariant()
    def the_route_is_of_the_highest_term(self) -> None:
        if not self.term_shown:
            return
        topic = f"topic-{self.term_shown}"
        assert self.table.topics() == [topic]
        leader = self.table.route(topic).groups[0].addresses.get(0)
        assert leader in (None, self.winners[self.term_shown])

    @invariant()
    def nothing_left_means_nothing_shown(self) -> None:
        if self.connections:
            return
        assert self.table.topics() == []
        assert self.table.next_deadline_ms() is None
        try:
            self.table.route(f"topic-{self.term_shown}")
        except TopicNotFoundError:
            return
        raise AssertionError("a route without a replica")

    def shown(self) -> dict[int, str]:
        group = self.table.group("a")
        return dict(group.addresses) if group else {}

    def forget(self, address: str) -> None:
        del self.connections[address]
        del self.seen[address]
        if not self.connections:
            self.term_shown = 0


TestRouteTable = RouteTableModel.TestCase
TestRouteTable.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
