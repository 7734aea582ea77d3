"""One queue of a state machine without a log: what a leader reads when it chooses for a pop."""

from struct import Struct

from broker.commands import encode_put_topic
from broker.pop_choice import QueueView, Wish
from broker.pop_state import PopMessages, RunKey
from dledger.model import TopicConfig
from tests.support.machine import Machine

UNIT = Struct(">qiq")


class PopQueue:
    """Queue 0 of topic `t` and the group `g`. The tag hash of message n is n % 3."""

    def __init__(self, path, count, *, offset_min=0, size=100):
        self.machine = Machine(path)
        (self.topic,) = self.machine.apply(encode_put_topic(TopicConfig(name="t")))
        self.bounds = (offset_min, count)
        self.size = size
        self.read_max = 0

    @property
    def rows(self):
        return self.machine.store.rows

    def queue_bounds(self, _topic_id, _queue_id):
        return self.bounds

    def consumer_offset(self, group, topic, queue_id):
        return self.machine.store.consumer_offset(group, topic, queue_id)

    def read_unit_bytes(self, _topic_id, _queue_id, start, count):
        assert self.bounds[0] <= start
        self.read_max = max(self.read_max, count)
        stop = min(start + count, self.bounds[1])
        return b"".join(UNIT.pack(n * 100, self.size, n % 3) for n in range(start, stop))

    def choose(self, now_ms=0, *, count_max=32, bytes_max=1 << 20, **wish):
        view = QueueView(self, Wish("g", **wish), self.topic, 0, lambda: self.bounds[0])
        return view.choose(now_ms, count_max=count_max, bytes_max=bytes_max)

    def give_out(self, choice, now_ms=0, *, invisible_ms=100, attempt_id=""):
        """Applies a choice; returns the run's name."""
        command = PopMessages("g", now_ms, invisible_ms, attempt_id, [choice.part])
        (popped,) = self.machine.apply(command)
        assert popped.accepted == (True,)
        return RunKey(choice.part.start, popped.pop_ms)

    def pop(self, now_ms=0, *, invisible_ms=100, attempt_id="", **more):
        if attempt_id:
            more["attempt_id"] = attempt_id
        choice = self.choose(now_ms, **more)
        return choice, self.give_out(
            choice, now_ms, invisible_ms=invisible_ms, attempt_id=attempt_id
        )
