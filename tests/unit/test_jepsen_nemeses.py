"""What nemeses leave behind when they cannot begin."""

import signal

import pytest

from jepsen_tests.hosts.shell import HarnessError
from jepsen_tests.nemeses.processes import stop_all


class FakeCluster:
    """Replicas of which some are dead; remembers who stands still."""

    def __init__(self, dead: set[str]) -> None:
        self.dead = dead
        self.stopped: set[str] = set()

    def signal(self, replica: str, number: signal.Signals) -> int:
        if replica in self.dead:
            raise HarnessError(f"{replica} does not run")
        (self.stopped.add if number == signal.SIGSTOP else self.stopped.discard)(replica)
        return 7


def test_all_are_stopped() -> None:
    cluster = FakeCluster(set())
    assert stop_all(cluster, ["a", "b"]) == {"a": 7, "b": 7}
    assert cluster.stopped == {"a", "b"}


def test_none_stays_stopped_when_another_fault_has_killed_one() -> None:
    cluster = FakeCluster({"b"})
    with pytest.raises(HarnessError):
        stop_all(cluster, ["a", "b", "c"])
    assert not cluster.stopped
