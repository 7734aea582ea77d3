"""Which links a partition cuts, and what a cut link does to messages."""

import random

import pytest

from dledger.errors import InvalidParameterError
from dledger.raft.transport import TransportConfig
from dledger.testing.links import Links, links_between, transport_with

EVERYBODY = ["a", "b", "c", "d", "e"]


def pairs(*names):
    return {frozenset(name) for name in names}


def test_replicas_in_no_island_form_one_of_their_own():
    assert links_between([["a"]], ["a", "b", "c"]) == pairs("ab", "ac")
    assert links_between([["a"], ["b"]], ["a", "b", "c"]) == pairs("ab", "ac", "bc")
    assert links_between([["a", "b"], ["c", "d", "e"]], EVERYBODY) == pairs(
        "ac", "ad", "ae", "bc", "bd", "be"
    )
    assert links_between([], EVERYBODY) == set()


def test_a_new_partition_replaces_the_old_one_and_heal_ends_it():
    links = Links()
    links.cut([["a"]], EVERYBODY)
    links.cut([["b"]], EVERYBODY)
    assert not links.is_cut("a", "c")
    assert links.is_cut("b", "c") and links.is_cut("c", "b")
    links.heal()
    assert not links.is_cut("b", "c")


@pytest.mark.parametrize("islands", [[["x"]], [["a"], ["a", "b"]]])
def test_a_wrong_partition_is_refused_and_changes_nothing(islands):
    links = Links()
    links.cut([["a"]], EVERYBODY)
    with pytest.raises(InvalidParameterError):
        links.cut(islands, EVERYBODY)
    assert links.is_cut("a", "b")


def test_a_cut_link_swallows_what_is_sent_and_what_arrives():
    class Receiver:
        def __init__(self):
            self.got = []

        def on_message(self, peer_id, message):
            self.got.append((peer_id, message))

    links = Links()
    config = TransportConfig(
        cluster_name="c",
        group_name="g",
        replica_id="a",
        listen_host="127.0.0.1",
        listen_port=0,
    )
    transport = transport_with(links)(config, random.Random(1))
    transport._receiver = receiver = Receiver()
    assert not transport.send("b", {"n": 1})  # not connected, and says so
    transport.deliver("b", {"n": 2})
    links.cut([["a"]], ["a", "b"])
    assert transport.send("b", {"n": 3})  # lost on its way, which nobody can know
    transport.deliver("b", {"n": 4})
    assert receiver.got == [("b", {"n": 2})]
