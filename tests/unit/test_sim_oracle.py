"""Whose disks the oracle of the simulation counts: those of the voters that count."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from dledger.raft.configuration import Configuration, Member, encode_entry
from jepsen_tests.sim.loop import VirtualLoop
from jepsen_tests.sim.oracle import Oracle

NAMES = ("r0", "r1", "r2", "r3", "r4")
MESSAGE = b"\x40"


class Log:
    """All that the oracle asks of a log; what is appended is durable at once."""

    first_index = 1

    def __init__(self) -> None:
        self.last_index = self.durable_index = 0
        self.terms: dict[int, int] = {}

    def append(self, index: int, term: int, body: bytes) -> None:
        self.last_index = self.durable_index = index
        self.terms[index] = term

    def append_records(self, entries: Any) -> None:
        for entry in entries:
            self.append(entry.index, entry.term, entry.body)

    def term_at(self, index: int) -> int | None:
        return self.terms.get(index)

    def truncate_from(self, index: int) -> None:
        self.last_index = self.durable_index = index - 1

    def reset_to(self, record: bytes) -> None: ...


class Five(NamedTuple):
    oracle: Oracle
    logs: dict[str, Log]


class Entry(NamedTuple):
    index: int
    term: int
    body: bytes


@pytest.fixture
def five() -> Iterator[Five]:
    loop = VirtualLoop()
    oracle = Oracle(loop, 0.0, NAMES)
    logs = {name: Log() for name in NAMES}
    for name, log in logs.items():
        oracle.opened(name, name, log, is_damaged=False)
    yield Five(oracle, logs)
    loop.close()


def configuration(voters: tuple[str, ...], learners: tuple[str, ...] = ()) -> bytes:
    members = [
        Member(id=name, number=number, is_voter=name in voters)
        for number, name in enumerate((*voters, *learners))
    ]
    return encode_entry(Configuration(members=tuple(members)))


def write(logs: dict[str, Log], names: tuple[str, ...], index: int, term: int, body: bytes) -> None:
    for name in names:
        logs[name].append(index, term, body)


def test_two_of_the_five_of_the_beginning_are_no_majority(five: Five) -> None:
    oracle, logs = five
    write(logs, ("r1", "r3"), 1, 1, MESSAGE)
    oracle.acknowledged(1, logs["r1"])
    assert [found.rule for found in oracle.violations] == ["majority-durable"]


def test_two_of_three_voters_are_a_majority_once_the_leader_has_written_so(five: Five) -> None:
    oracle, logs = five
    write(logs, ("r1", "r3"), 1, 1, MESSAGE)
    write(logs, ("r3",), 2, 1, configuration(("r0", "r1", "r3"), ("r2", "r4")))
    oracle.acknowledged(1, logs["r3"])
    assert not oracle.violations


def test_what_only_another_log_says_of_the_voters_does_not_count(five: Five) -> None:
    oracle, logs = five
    write(logs, ("r1", "r3"), 1, 2, MESSAGE)
    write(logs, ("r0",), 1, 1, MESSAGE)  # of a deposed leader
    write(logs, ("r0",), 2, 1, configuration(("r0", "r1", "r3"), ("r2", "r4")))
    oracle.acknowledged(1, logs["r1"])
    assert [found.rule for found in oracle.violations] == ["majority-durable"]


def test_learners_do_not_count(five: Five) -> None:
    oracle, logs = five
    three = configuration(("r0", "r1", "r3"), ("r2", "r4"))
    write(logs, NAMES, 2, 1, three)
    oracle.applied("r0", 0, [Entry(2, 1, three)])
    assert not oracle.violations
    write(logs, ("r0", "r2", "r4"), 3, 1, MESSAGE)
    oracle.acknowledged(3, logs["r0"])
    assert [found.rule for found in oracle.violations] == ["majority-durable"]


def test_a_leader_owes_what_was_stored_before_its_term_and_not_what_came_after(five: Five) -> None:
    oracle, logs = five
    write(logs, ("r0", "r1", "r4"), 1, 1, MESSAGE)
    oracle.acknowledged(1, logs["r0"])
    write(logs, ("r2", "r3", "r4"), 2, 3, MESSAGE)
    oracle.acknowledged(2, logs["r4"])
    oracle.serving("r1#1", "r1", 2, None, logs["r1"])  # it stood still while r4 was elected
    assert not oracle.violations
    oracle.serving("r1#1", "r1", 4, None, logs["r1"])
    assert [found.rule for found in oracle.violations] == ["leader-complete"]
