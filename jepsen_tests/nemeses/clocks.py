"""F8: wall clocks that jump or flicker. Proof: what the broker says the time is."""

from __future__ import annotations

import math
import threading

from jepsen_tests.hosts.skewed_clock import set_offset_ms
from jepsen_tests.nemeses.base import ALL, FOLLOWER, LEADER, Bench, Injection, Nemesis

_JUMP_MAX_S = 300.0
_JUMP_MIN_S = 1.0


class ClockNemesis(Nemesis):
    """F8: jumps of 1 s to 300 s in both directions, spread evenly over magnitudes; or a strobe."""

    name = "F8"
    title = "wall clock jumps"
    targets = (LEADER, LEADER, FOLLOWER, ALL)
    needs_clock = True

    def begin(self, bench: Bench) -> Injection:
        """Moves the clocks of the target."""
        group, target = bench.group(), self.choose_target(bench)
        chosen = bench.pick(group, target)
        chance = bench.chance
        jump_s = math.exp(chance.uniform(math.log(_JUMP_MIN_S), math.log(_JUMP_MAX_S)))
        jump_ms = int(1000 * jump_s) * chance.choice((1, -1))
        strobe = chance.random() < 0.3
        how = "strobe" if strobe else "jump"
        injection = Injection(f"clock {how} {jump_ms / 1000:+.1f} s on {target}", chosen, group)
        paths = [bench.cluster.clock_file(replica) for replica in chosen]
        for path in paths:
            set_offset_ms(path, jump_ms)
        injection.proof["offsetMs"] = jump_ms
        injection.proof["seenMs"] = {
            replica: bench.cluster.wall_offset_ms(replica) for replica in chosen
        }
        if strobe:
            stop = threading.Event()
            injection.details["stop"] = stop

            def flicker() -> None:
                on = False
                while not stop.wait(0.05):
                    on = not on
                    for path in paths:
                        set_offset_ms(path, jump_ms if on else 0)

            threading.Thread(target=flicker, daemon=True, name="strobe").start()
        return injection

    def end(self, bench: Bench, injection: Injection) -> None:
        """Sets the clocks right."""
        stop = injection.details.pop("stop", None)
        if stop is not None:
            stop.set()
        for replica in injection.targets:
            set_offset_ms(bench.cluster.clock_file(replica), 0)
        wanted = injection.proof["offsetMs"]
        seen = injection.proof["seenMs"].values()
        injection.bit = all(ms is not None and abs(ms - wanted) < 1500 for ms in seen)
