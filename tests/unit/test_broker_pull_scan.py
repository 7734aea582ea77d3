"""Choosing messages from ConsumeQueue units."""

import random
from struct import Struct

from broker.pull_scan import Selection

UNIT = Struct(">qiq")


def pack(*units):
    return b"".join(UNIT.pack(*unit) for unit in units)


def test_neighbours_become_one_slice():
    selection = Selection(10, count_max=10, size_bytes_max=1000)
    selection.add(pack((100, 10, 0), (110, 5, 0), (200, 7, 0)), None)
    assert selection.slices == [(100, 15), (200, 7)]
    assert (selection.next_offset, selection.count, selection.size_bytes) == (13, 3, 22)
    assert not selection.is_full


def test_slices_go_on_across_calls():
    selection = Selection(0, count_max=10, size_bytes_max=1000)
    selection.add(pack((100, 10, 0)), None)
    selection.add(pack((110, 10, 0)), None)
    assert selection.slices == [(100, 20)]


def test_what_does_not_pass_moves_on_and_parts_neighbours():
    selection = Selection(0, count_max=10, size_bytes_max=1000)
    selection.add(pack((100, 10, 1), (110, 10, 2), (120, 10, -1)), frozenset({1, -1}))
    assert selection.slices == [(100, 10), (120, 10)]
    assert selection.next_offset == 3


def test_the_count_is_a_limit():
    selection = Selection(0, count_max=2, size_bytes_max=1000)
    selection.add(pack((0, 1, 0), (1, 1, 0), (2, 1, 0)), None)
    assert (selection.count, selection.next_offset, selection.is_full) == (2, 2, True)


def test_the_size_is_a_limit_but_one_message_always_comes():
    selection = Selection(0, count_max=9, size_bytes_max=5)
    selection.add(pack((0, 100, 0), (100, 1, 0)), None)
    assert (selection.count, selection.next_offset, selection.is_full) == (1, 1, True)


def test_nothing_that_passes_is_an_empty_selection():
    selection = Selection(5, count_max=9, size_bytes_max=5)
    selection.add(pack((0, 100, 3)), frozenset({4}))
    assert (selection.slices, selection.count, selection.next_offset) == ([], 0, 6)


def test_any_split_of_the_units_gives_the_same():
    rng = random.Random(7)
    for seed in range(200):
        position, units = 0, []
        for _ in range(rng.randrange(1, 20)):
            position += rng.choice((0, 0, 50))
            size = rng.randrange(1, 30)
            units.append((position, size, rng.randrange(3)))
            position += size
        codes = rng.choice((None, frozenset({1}), frozenset({0, 2})))
        limits = {"count_max": rng.randrange(1, 9), "size_bytes_max": rng.randrange(1, 100)}
        whole = Selection(0, **limits)
        whole.add(pack(*units), codes)
        pieces = Selection(0, **limits)
        for unit in units:
            if pieces.is_full:
                break
            pieces.add(pack(unit), codes)
        for name in ("slices", "count", "size_bytes", "next_offset", "is_full"):
            assert getattr(whole, name) == getattr(pieces, name), (seed, name)
