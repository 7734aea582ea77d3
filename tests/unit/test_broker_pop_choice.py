"""What a pop takes of a queue."""

from broker import pop_choice
from broker.commands import encode_commit_offsets
from broker.pop_state import Ack, AckMessages, Change, ChangeVisibility, pack_bits
from tests.support.pop_queue import PopQueue as State


def offsets(choice):
    return [message.offset for message in choice.messages]


def test_new_messages_come_in_order_and_up_to_the_limits(tmp_path):
    state = State(tmp_path, 100)
    choice, _ = state.pop(count_max=3)
    assert offsets(choice) == [0, 1, 2] and choice.rest == 97
    assert offsets(state.choose(bytes_max=250)) == [3, 4]
    assert offsets(state.choose(bytes_max=1)) == [3], "one message comes whatever its size"
    assert len(state.choose(count_max=1000).messages) == 97


def test_what_is_out_comes_again_before_what_is_new(tmp_path):
    state = State(tmp_path, 10)
    state.pop(count_max=2)
    state.pop(now_ms=50, count_max=2)
    assert offsets(state.choose(99)) == [4, 5, 6, 7, 8, 9]
    choice = state.choose(100)
    assert offsets(choice) == [0, 1] and choice.earlier == 1 and choice.visible_ms == 150
    again, _ = state.pop(150)
    assert offsets(again) == [0, 1, 2, 3], "of several pops, if given out as often"
    later, _ = state.pop(150)
    assert offsets(later) == [4, 5, 6, 7, 8, 9]
    assert state.choose(260).earlier in (1, 2)


def test_a_filter_skips_and_its_skipping_is_kept(tmp_path):
    state = State(tmp_path, 30)
    choice, _ = state.pop(codes=frozenset({2}), count_max=4)
    assert offsets(choice) == [2, 5, 8, 11] and choice.part.stop == 14
    none = state.choose(codes=frozenset({9}))
    assert not none.messages and none.skipped == 16 and none.part.stop == 30


def test_a_run_covers_a_bounded_range(tmp_path):
    state = State(tmp_path, 5000)
    choice = state.choose(test=lambda at, _size: at in (0, 50_000, 110_000, 130_000))
    assert offsets(choice) == [0, 500]
    choice = state.choose(codes=frozenset({0}), count_max=1000)
    assert choice.messages[-1].offset < 1024


def test_what_is_gone_or_no_longer_wanted_is_dropped(tmp_path):
    state = State(tmp_path, 10)
    state.pop(count_max=6)
    state.bounds = (2, 10)
    choice, _ = state.pop(100, codes=frozenset({0}))
    assert offsets(choice) == [3]
    assert state.consumer_offset("g", "t", 0) == 3
    assert state.choose(150).messages[0].offset == 6


def test_a_group_that_was_moved_begins_there(tmp_path):
    state = State(tmp_path, 10)
    state.pop(count_max=4)
    for offset, expected in ((7, [7, 8, 9]), (1, list(range(1, 10))), (99, [])):
        state.machine.apply(encode_commit_offsets([("g", "t", 0, offset)]))
        assert offsets(state.choose(0)) == expected


def test_order_blocks_and_an_attempt_repeats(tmp_path):
    state = State(tmp_path, 10)
    _, key = state.pop(order=True, attempt_id="", count_max=3)
    assert not state.choose(50, order=True).messages
    state.machine.apply(AckMessages([Ack("g", "t", 0, key, pack_bits(0b011))]))
    assert not state.choose(50, order=True).messages, "the last one is out still"
    assert offsets(state.choose(100, order=True)) == [2], "and nothing new before it is done"
    state.pop(100, order=True, attempt_id="a")
    assert not state.choose(150, order=True, attempt_id="b").messages
    assert offsets(state.choose(150, order=True, attempt_id="a")) == [2]


def test_the_dead_are_named_and_not_given_out(tmp_path):
    state = State(tmp_path, 3)
    state.pop(count_max=2)
    choice = state.choose(100, deliveries_max=lambda at, _size: 1 if at == 0 else None)
    assert offsets(choice) == [1]
    assert [(dead.offset, dead.deliveries) for dead in choice.dead] == [(0, 1)]


def test_too_much_out_stops_what_is_new(tmp_path, monkeypatch):
    monkeypatch.setattr(pop_choice, "RUNS_MAX", 2)
    state = State(tmp_path, 10)
    state.pop(count_max=1)
    _, key = state.pop(count_max=1)
    full = state.choose(50)
    assert full.is_full and not full.messages and full.visible_ms == 100
    state.machine.apply(AckMessages([Ack("g", "t", 0, key, b"\1")]))
    assert state.choose(50, count_max=1).messages


def test_the_cost_does_not_depend_on_the_backlog(tmp_path):
    state = State(tmp_path, 10_000_000)
    state.pop(count_max=16)
    assert state.read_max == 16


def test_in_order_nothing_passes_what_is_out_or_dead(tmp_path):
    state = State(tmp_path, 5)
    _, key = state.pop(order=True, count_max=3)
    longer = Change("g", "t", 0, key, 0, 500)
    state.machine.apply(ChangeVisibility(0, [longer]))
    assert not state.choose(100, order=True).messages, "the first is out still"
    assert offsets(state.choose(500, order=True)) == [0, 1, 2]
    dead = state.choose(500, order=True, deliveries_max=lambda at, _size: 1 if at == 0 else None)
    assert not dead.messages and [entry.offset for entry in dead.dead] == [0]


def test_in_order_what_came_again_alone_still_comes_first(tmp_path):
    state = State(tmp_path, 5)
    state.pop(order=True, count_max=3)
    again, _ = state.pop(100, order=True, count_max=1)
    assert offsets(again) == [0]
    assert not state.choose(150, order=True).messages
    assert offsets(state.choose(200, order=True)) == [0]
