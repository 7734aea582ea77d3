"""What became of a dead letter on its way to a majority."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from broker import pop_dead_letters
from broker.pop_choice import Dead
from broker.pop_dead_letters import PopDeadLetters
from broker.pop_state import RunKey
from dledger.errors import CommitTimeoutError, DLedgerError, FlowControlError

PLACE = ("g", "t", 0, 7)


class Letters(PopDeadLetters):
    """Storing ends when the test says so."""

    def __init__(self) -> None:
        self.asked: list[Callable[[DLedgerError | None], None]] = []
        self.buried: list[str] = []
        self.raft = SimpleNamespace(applied_index=10)
        self.log = SimpleNamespace(last_index=10)
        store = SimpleNamespace(group=lambda _name: object())
        context: Any = SimpleNamespace(raft=self.raft, log=self.log, store=store)
        catalog: Any = SimpleNamespace(ensure_topic=lambda _config, made: made(object(), None))
        acks: Any = SimpleNamespace(is_under_way=lambda _place: False)
        super().__init__(context, catalog, acks, store_host=b"", on_buried=self.buried.append)

    def _store(self, *arguments: Any) -> None:
        self.asked.append(arguments[-1])
        self.log.last_index += 1

    def ask(self, offset: int = 7) -> int:
        """Asks for a burial; returns how many have been begun until now."""
        self.bury("g", "t", 0, Dead(RunKey(offset, 1), offset, 100 * offset, 100, 17))
        return len(self.asked)


def test_after_an_unknown_outcome_it_is_tried_again_when_that_is_known() -> None:
    letters = Letters()
    assert letters.ask() == 1
    assert letters.ask() == 1
    letters.log.last_index = 20  # others went on
    letters.asked[0](CommitTimeoutError("nobody answers"))
    for applied in (10, 11, 19):  # it may be any of these
        letters.raft.applied_index = applied
        assert letters.is_under_way(PLACE)
        assert letters.ask() == 1
    letters.raft.applied_index = 20
    assert not letters.is_under_way(PLACE)
    # Whoever pops sees that it was not stored after all, in the same term.
    assert letters.ask() == 2
    assert letters.is_under_way(PLACE)
    letters.asked[1](None)
    assert letters.buried == ["t"]
    assert not letters.is_under_way(PLACE)


def test_a_refusal_is_tried_again_at_once() -> None:
    letters = Letters()
    assert letters.ask() == 1
    letters.asked[0](FlowControlError("too much"))
    assert letters.ask() == 2


def test_unknown_outcomes_do_not_take_all_places_for_the_rest_of_a_term(monkeypatch: Any) -> None:
    monkeypatch.setattr(pop_dead_letters, "UNDER_WAY_MAX", 3)
    letters = Letters()
    for offset in range(3):
        letters.ask(offset)
    assert letters.ask(9) == 3
    for settled in letters.asked[:2]:
        settled(CommitTimeoutError("nobody answers"))
    assert letters.ask(9) == 3
    letters.raft.applied_index = letters.log.last_index
    assert letters.ask(9) == 4
    assert letters.is_under_way(("g", "t", 0, 2)), "no answer yet"
