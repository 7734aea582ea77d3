"""One call after the other, some turns of the loop apart."""

from __future__ import annotations

import asyncio
import functools
import itertools

from dledger.client.turns import LOOP_TURNS, Turns


def test_calls_come_in_order_and_apart() -> None:
    async def main() -> list[tuple[str, int]]:
        turns, turn = Turns(), 0
        called: list[tuple[str, int]] = []

        def note(name: str) -> None:
            called.append((name, turn))

        for name in "abc":
            turns.call(functools.partial(note, name))
        assert called == [("a", 0)]  # nothing holds it up
        while len(called) < 3:
            turn += 1
            await asyncio.sleep(0)
        for _ in range(LOOP_TURNS):
            turn += 1
            await asyncio.sleep(0)
        turns.call(functools.partial(note, "d"))
        assert called[-1] == ("d", turn)
        return called

    called = asyncio.run(asyncio.wait_for(main(), 5))
    assert [name for name, _ in called] == ["a", "b", "c", "d"]
    times = [turn for _, turn in called]
    assert all(second - first >= LOOP_TURNS for first, second in itertools.pairwise(times))
