"""One message of a queue in hand at a time, and only while its lock counts."""

from dataclasses import dataclass

from dledger.client.ordering import OrderedLine
from dledger.client.process_queue import ProcessQueue
from dledger.model import MessageQueue

QUEUE = MessageQueue("t", "broker-a", 0)


@dataclass(eq=False)
class Item:
    window: ProcessQueue
    number: int


def line(held=lambda _queue: True):
    window = ProcessQueue(QUEUE, 0, messages_max=10, bytes_max=1000)
    return OrderedLine(held), window, [Item(window, number) for number in range(4)]


def test_one_after_the_other():
    ordered, window, items = line()
    assert ordered.offer(window, items[:2]) is items[0]
    assert ordered.offer(window, items[2:]) is None
    for here, following in zip(items, [*items[1:], None], strict=True):
        assert ordered.take(here)
        assert ordered.is_in_hand(QUEUE)
        assert ordered.finish(here) is following
    assert not ordered.is_in_hand(QUEUE)
    more = Item(window, 9)
    assert ordered.offer(window, [more]) is more


def test_a_failure_holds_up_what_is_behind():
    ordered, window, items = line()
    assert ordered.offer(window, items) is items[0]
    assert ordered.take(items[0])
    ordered.fail(items[0])
    assert not ordered.is_in_hand(QUEUE)
    assert ordered.offer(window, []) is None
    assert ordered.take(items[0])
    assert ordered.finish(items[0]) is items[1]


def test_nothing_is_handed_out_without_a_lock():
    held = [True]
    ordered, window, items = line(lambda _queue: held[0])
    ordered.offer(window, items)
    held[0] = False
    assert not ordered.take(items[0])
    assert window.dropped, "so that it is taken over anew, from what is committed"
    held[0] = True
    assert not ordered.take(items[0])


def test_a_forgotten_window_leaves_only_what_is_in_hand():
    ordered, window, items = line()
    ordered.offer(window, items)
    ordered.take(items[0])
    window.dropped = True
    ordered.forget(window)
    assert ordered.is_in_hand(QUEUE)
    assert ordered.finish(items[0]) is None
    assert not ordered.is_in_hand(QUEUE)
