"""A few thousand of the comparisons that `make check-checkers` runs at length."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from random import Random

import pytest

from jepsen_tests.checkers.agreement import (
    MaxModel,
    compare_logs,
    compare_registers,
    false_alarm,
    fast_verdict,
    slow_verdict,
)
from jepsen_tests.checkers.log_store import NEVER
from jepsen_tests.checkers.models import MODELS, Register, settled_writes
from jepsen_tests.checkers.random_logs import CorrectLog, Shape
from jepsen_tests.checkers.search import Model, Operation, precedence, search
from jepsen_tests.history import Meta


def test_log_rules_agree_with_brute_force() -> None:
    verdicts = [compare_logs(seed) for seed in range(1_000_000, 1_004_000)]
    assert all(agreed for agreed, _ in verdicts)
    legal = sum(was_legal for _, was_legal in verdicts)
    assert 400 < legal < 3_600  # both answers were tried


def test_every_log_rule_takes_part_in_the_comparison() -> None:
    seen: set[str] = set()
    for seed in range(2_000):
        random = Random(seed)
        history = CorrectLog(random, Shape(operations=8, batches=True, keys=2)).run()
        from jepsen_tests.checkers.random_logs import mutate

        mutate(random, history)
        seen |= {found.rule for found in fast_verdict(history)}
    assert seen == {"C1", "C2", "C3", "C4", "C5"}


def test_own_writes_agree_with_brute_force() -> None:
    meta = Meta(read_your_writes=True)
    legal = 0
    for seed in range(1_500):
        random = Random(seed)
        # The sessions of the simulated follower promise less: some histories are illegal.
        history = CorrectLog(random, Shape(operations=9, eventual=True, processes=2)).run()
        expected = slow_verdict(history, meta)
        assert expected == (not fast_verdict(history, meta)), seed
        legal += bool(expected)
    assert 100 < legal < 1_500


def test_max_registers_agree_with_brute_force() -> None:
    verdicts = [compare_registers(seed) for seed in range(1_000_000, 1_005_000)]
    assert all(agreed for agreed, _ in verdicts)
    assert 500 < sum(legal for _, legal in verdicts) < 4_500


def test_no_false_alarm_on_long_histories_of_a_correct_log() -> None:
    for seed in range(1_000_000, 1_000_200):
        assert false_alarm(seed) == [], seed


def _by_permutations(operations: list[Operation], model: Model) -> bool:
    before = precedence(operations)
    for size in range(len(operations) + 1):
        for order in permutations(range(len(operations)), size):
            if any(not operations[i].optional and i not in order for i in range(len(operations))):
                continue
            done, states = 0, {model.initial}
            for position in order:
                if before[position] & ~done:
                    states = set()
                    break
                done |= 1 << position
                states = {s for old in states for s in model.step(old, operations[position])}
            if states:
                return True
    return False


@pytest.mark.parametrize("model", [Register(), MaxModel()], ids=["register", "max"])
def test_the_search_agrees_with_all_permutations(model: Model) -> None:
    random = Random(5)
    legal = 0
    for _ in range(300):
        operations = []
        for _ in range(random.randrange(1, 6)):
            inv = random.randrange(10)
            info = random.random() < 0.2
            ret = NEVER if info else inv + random.randrange(1, 6)
            if isinstance(model, MaxModel):
                f = "fetch" if random.random() < 0.5 and not info else "commit"
                operations.append(
                    Operation(inv, ret, f, (random.randrange(3),), random.randrange(3), info)
                )
                continue
            f = random.choice(("read", "write", "cas"))
            args = tuple(random.randrange(2) for _ in range(2))
            result = random.random() < 0.5 if f == "cas" else random.choice((None, 0, 1))
            operations.append(Operation(inv, ret, f, args, result, info))
        expected = _by_permutations(operations, model)
        assert search(operations, model).legal == expected
        legal += expected
    assert 30 < legal < 270


def test_a_search_beyond_its_limits_has_no_answer() -> None:
    operations = [Operation(0, 99, "write", (value,), None, False) for value in range(12)]
    operations.append(Operation(100, 101, "read", (), 99, False))
    assert search(operations, Register(), states_max=100).legal is None
    assert search(operations[:4] + operations[-1:], Register()).legal is False


def random_config(random: Random) -> list[Operation]:
    """Returns a short history of a register with unique writes, legal or spoiled."""
    value, now, version = 0, 0, 0
    operations: list[Operation] = []
    for _ in range(random.randrange(3, 8)):
        now += random.randrange(1, 3)
        inv, ret = now - random.randrange(3), now + random.randrange(3)
        if random.random() < 0.5:
            version += 1
            info = random.random() < 0.5
            if not info or random.random() < 0.5:
                value = version
            operations.append(
                Operation(inv, NEVER if info else ret, "write", (version,), None, info)
            )
        else:
            seen = random.randrange(version + 1) if random.random() < 0.4 else value
            operations.append(Operation(inv, ret, "read", (), seen, False))
    return operations


def test_settling_unknown_writes_changes_no_verdict() -> None:
    verdicts = Counter[bool]()
    for seed in range(3000):
        operations = random_config(Random(seed))
        expected = search(operations, MODELS["config"]).legal
        assert search(settled_writes(operations), MODELS["config"]).legal is expected, seed
        verdicts[bool(expected)] += 1
    assert min(verdicts.values()) > 300
