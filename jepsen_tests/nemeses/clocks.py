"""F8: wall clocks that jump or flicker. Proof: what the broker says the time is."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from jepsen_tests.hosts.skewed_clock import set_offset_ms
from jepsen_tests.nemeses.base import ALL, FOLLOWER, LEADER, Bench, Injection, Nemesis

_JUMP_MAX_S = 300.0
_JUMP_MIN_S = 1.0
_STROBE_S = (0.02, 0.25)
_TOLERANCE_MS = 400  # for the way of the answer on a busy machine; less than half a jump
_LOOKS_MAX = 40


class Strobe:
    """A thread that moves clocks there and back, until it is stopped."""

    def __init__(self, paths: Sequence[Path], jump_ms: int, period_s: float) -> None:
        self._paths = paths
        self._jump_ms = jump_ms
        self._period_s = period_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="strobe")
        self._thread.start()

    def stop(self) -> None:
        """Ends it; the clocks stay where they are."""
        self._stopping.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        on = False
        while not self._stopping.wait(self._period_s):
            on = not on
            for path in self._paths:
                set_offset_ms(path, self._jump_ms if on else 0)


class ClockNemesis(Nemesis):
    """F8: jumps of 1 s to 300 s in both directions, spread evenly over magnitudes; or a strobe.

    They take turns. Proof of a jump: the target says that its clock is that far off. Of a strobe:
    it says so once, and another time that its clock is right.
    """

    name = "F8"
    title = "wall clock jumps"
    targets = (LEADER, LEADER, FOLLOWER, ALL)
    needs_clock = True

    def __init__(self) -> None:
        self._turn = 0

    def begin(self, bench: Bench) -> Injection:
        """Moves the clocks of the target."""
        group, target = bench.group(), self.choose_target(bench)
        chosen = bench.pick(group, target)
        chance = bench.chance
        jump_s = math.exp(chance.uniform(math.log(_JUMP_MIN_S), math.log(_JUMP_MAX_S)))
        jump_ms = int(1000 * jump_s) * chance.choice((1, -1))
        self._turn += 1
        how = "strobe" if self._turn % 2 == 0 else "jump"
        injection = Injection(f"clock {how} {jump_ms / 1000:+.1f} s on {target}", chosen, group)
        injection.proof["offsetMs"] = jump_ms
        paths = [bench.cluster.clock_file(replica) for replica in chosen]
        if how == "jump":
            for path in paths:
                set_offset_ms(path, jump_ms)
            seen = {replica: [bench.cluster.wall_offset_ms(replica)] for replica in chosen}
            wanted: tuple[int, ...] = (jump_ms,)
        else:
            period_s = chance.uniform(*_STROBE_S)
            injection.proof["periodMs"] = round(1000 * period_s)
            injection.details["strobe"] = Strobe(paths, jump_ms, period_s)
            wanted = (0, jump_ms)
            seen = {replica: _watch(bench, replica, wanted) for replica in chosen}
        injection.proof["seenMs"] = seen
        injection.bit = all(_shows(offsets, wanted) for offsets in seen.values())
        return injection

    def end(self, bench: Bench, injection: Injection) -> None:
        """Sets the clocks right."""
        strobe = injection.details.pop("strobe", None)
        if strobe is not None:
            strobe.stop()
        for replica in injection.targets:
            set_offset_ms(bench.cluster.clock_file(replica), 0)


def _watch(bench: Bench, replica: str, wanted: Sequence[int]) -> list[int | None]:
    """Looks at a flickering clock until it has been seen in all places; returns what was seen."""
    seen: list[int | None] = []
    for look in range(_LOOKS_MAX):
        seen.append(bench.cluster.wall_offset_ms(replica))
        if _shows(seen, wanted):
            break
        time.sleep(0.01 + 0.003 * (look % 7))  # never in step with the strobe
    return seen


def _shows(seen: Sequence[int | None], wanted: Sequence[int]) -> bool:
    return all(
        any(ms is not None and abs(ms - place) < _TOLERANCE_MS for ms in seen) for place in wanted
    )
