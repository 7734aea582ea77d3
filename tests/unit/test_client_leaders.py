from __future__ import annotations

from dledger.client.leaders import FAILED_FOR_MS, LeaderBook

A, B, C = "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"


def book() -> LeaderBook:
    made = LeaderBook("broker-a")
    made.registered(A, [A, B, C], 0)
    return made


def test_the_nameserver_is_believed_first() -> None:
    assert book().leader == A
    assert book().addresses == [A, B, C]


def test_a_failure_drops_the_leader_but_not_its_address() -> None:
    made = book()
    made.failed(A, 0)
    assert made.leader is None
    assert made.addresses == [A, B, C]
    assert made.reachable(10) == [B, C]


def test_followers_of_the_dead_are_not_believed_when_they_name_it() -> None:
    made = book()
    made.failed(A, 0)
    made.hinted(B, A, 7, 10)
    assert made.leader is None
    made.hinted(C, A, 7, 20)
    assert made.leader is None
    made.registered(A, [A, B, C], 30)  # nor the nameserver, which has not noticed
    assert made.leader is None
    made.hinted(C, B, 8, 40)
    assert made.leader == B


def test_a_restarted_leader_of_a_higher_term_is_believed_at_once() -> None:
    made = book()
    made.hinted(A, B, 5, 0)
    assert made.leader == B
    made.failed(B, 1)
    made.hinted(C, B, 6, 2)
    assert made.leader == B


def test_hints_of_older_terms_are_ignored() -> None:
    made = book()
    made.hinted(A, B, 5, 0)
    made.hinted(C, A, 4, 0)
    assert made.leader == B


def test_a_replica_that_names_itself_while_it_refuses_is_not_ready() -> None:
    made = book()
    made.hinted(A, A, 5, 0)
    assert made.leader is None


def test_the_nameserver_is_believed_when_it_changes_its_mind() -> None:
    made = book()
    made.hinted(A, B, 5, 0)
    made.registered(A, [A, B, C], 10)  # the same as before: no news
    assert made.leader == B
    made.registered(C, [A, B, C], 20)
    assert made.leader == C


def test_a_failure_is_forgotten_after_a_while() -> None:
    made = book()
    made.failed(A, 0)
    made.registered(A, [A, B, C], FAILED_FOR_MS)
    assert made.leader == A


def test_a_success_settles_it() -> None:
    made = book()
    made.failed(A, 0)
    made.succeeded(A)
    assert made.leader == A
    assert made.reachable(1) == [A, B, C]
