"""When faults begin and how long they are held, on a clock that the test moves."""

import random
from types import SimpleNamespace

import pytest

from jepsen_tests import schedule as module
from jepsen_tests.schedule import CALM_S, OVERTIME_S, QUIET_S, WARM_UP_S, Schedule


class Clock:
    """Stands in for the module `time`; each look at the clock may cost time."""

    def __init__(self, look_s=0.0):
        self.now_s = 100.0
        self.look_s = look_s

    def monotonic(self):
        self.now_s += self.look_s
        return self.now_s

    def monotonic_ns(self):
        return int(self.monotonic() * 1e9)

    def sleep(self, seconds):
        self.now_s += seconds


class FakeNemesis:
    hold_s = (2.0, 4.0)

    def __init__(self, name, clock):
        self.name = name
        self.clock = clock
        self.held = []

    def begin(self, bench):
        self.began_s = self.clock.now_s
        return SimpleNamespace(variant="", targets=[], proof={})

    def end(self, bench, injection):
        self.held.append((self.began_s - 100.0, self.clock.now_s - self.began_s))


class Log:
    def begin_fault(self, name, injection, inv):
        return 1

    def end_fault(self, fault_id, injection):
        return SimpleNamespace(bit=True, proof={})

    def leaders_after_fault(self, fault_id, leaders):
        pass


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def play(clock, length_s, count=1, seed=1):
    nemeses = [FakeNemesis(f"F{n}", clock) for n in range(count)]
    serving = SimpleNamespace(is_serving=True)
    bench = SimpleNamespace(
        cluster=SimpleNamespace(status=lambda timeout_s: serving),
        monitor=SimpleNamespace(knows=lambda status: True, changes_within=lambda begin, end: []),
    )
    chance = random.Random(seed)
    one = Schedule(bench, Log(), nemeses, chance, lambda text: None, lambda: None)
    one.run(clock.now_s + length_s)
    return nemeses


def test_a_fault_is_held_as_long_as_there_is_time(clock):
    for seed in range(50):
        clock.now_s = 100.0
        (nemesis,) = play(clock, WARM_UP_S + 3.0 + QUIET_S, seed=seed)
        ((began_s, held_s),) = nemesis.held
        assert began_s == pytest.approx(WARM_UP_S)
        assert 2.0 <= held_s <= 3.0 + 1e-6
        assert clock.now_s == pytest.approx(109.0, abs=CALM_S[1])


def test_a_slow_machine_still_has_each_fault_once(clock):
    clock.look_s = 0.1  # every second takes about two
    for seed in range(20):
        clock.now_s = 100.0
        first, second = play(clock, 12.0, count=2, seed=seed)
        assert (len(first.held), len(second.held)) == (1, 1)


def test_no_fault_begins_when_it_is_much_too_late(clock):
    clock.look_s = 2.0
    nemeses = play(clock, 8.0, count=9)
    begun = [began_s for nemesis in nemeses for began_s, _ in nemesis.held]
    assert 1 <= len(begun) < 9
    assert max(begun) < 8.0 + OVERTIME_S


def test_without_faults_it_only_waits(clock):
    assert play(clock, 7.0, count=0) == []
    assert clock.now_s == pytest.approx(107.0)
