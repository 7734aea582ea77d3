"""Transactions as replicated state: opened with the half message, ended once with the real one."""

import pytest

from broker.commands import encode_delete_topic, encode_put_topic
from broker.half_messages import half_properties, is_half
from broker.messages_command import EncodedMessage, MessagesBuilder, Part
from broker.riders import RIDER, Rider, decode_riders, encode_prefix, prefix_bytes
from broker.transactions import (
    ENDS_KEPT_MS,
    ChecksSent,
    EndHalves,
    Outcome,
    due_halves,
    end_rider,
    ended_half,
    open_half,
    open_rider,
)
from dledger.errors import InvariantError, MessageRejectedError
from dledger.message import decode_properties
from dledger.model import TopicConfig
from tests.support.machine import Machine

HALF, REAL = 1, 2


class Log:
    """Writes commands as a leader does."""

    def __init__(self):
        self.offset = 0
        self.next = {}

    def take(self, topic_id, queue_id, count):
        first = self.next.get((topic_id, queue_id), 0)
        self.next[topic_id, queue_id] = first + count
        return first

    def messages(self, now_ms, *requests):
        builder, riders = MessagesBuilder(), []
        for topic_id, rider in requests:
            part = Part(topic_id, [EncodedMessage(bytes(100))])
            builder.add(topic_id, 0, part)
            riders.append((rider, part, topic_id))
        start = prefix_bytes(riders)
        body = builder.encode(self.offset + start, now_ms, self.take)
        command = encode_prefix(riders, now_ms) + body
        self.offset += len(command) + 40
        return command


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path)
    made.apply(*(encode_put_topic(TopicConfig(name=name)) for name in ("half", "real")))
    yield made
    made.store.close()


def opening(log, now_ms=1000, group="pg", immunity_ms=6000):
    return log.messages(now_ms, (HALF, open_rider(group, immunity_ms)))


def committing(log, half_offset, now_ms=2000):
    return log.messages(now_ms, (REAL, end_rider(half_offset, Outcome.COMMITTED)))


def test_open_then_commit(machine, log):
    machine.apply(opening(log), opening(log, group="other"))
    half = open_half(machine.store.rows, 1)
    assert (half.group, half.stored_ms, half.due_ms, half.checks) == ("other", 1000, 7000, 0)
    unit = machine.store.read_units(HALF, 0, 1, 1)[0]
    assert (half.physical_offset, half.size_bytes) == (unit.physical_offset, unit.size_bytes)
    machine.apply(committing(log, 1))
    assert open_half(machine.store.rows, 1) is None
    assert open_half(machine.store.rows, 0) is not None
    assert ended_half(machine.store.rows, 1).outcome == Outcome.COMMITTED
    assert machine.store.queue_bounds(REAL, 0) == (0, 1)


def test_rolling_back_stores_nothing_and_happens_once(machine, log):
    machine.apply(opening(log))
    ends = EndHalves(3000, [(0, Outcome.ROLLED_BACK), (7, Outcome.ROLLED_BACK)])
    assert machine.apply(ends, ends) == [[True, False], [False, False]]
    assert ended_half(machine.store.rows, 0).outcome == Outcome.ROLLED_BACK
    assert machine.store.queue_bounds(REAL, 0) == (0, 0)


def test_due_ones_come_in_order_and_are_put_off(machine, log):
    machine.apply(*(opening(log, immunity_ms=ms) for ms in (5000, 1000, 3000)))
    rows = machine.store.rows
    assert due_halves(rows, 1999, 10) == []
    assert [offset for offset, _ in due_halves(rows, 4000, 10)] == [1, 2]
    assert [offset for offset, _ in due_halves(rows, 9000, 2)] == [1, 2]
    machine.apply(ChecksSent(50_000, [(1, True), (2, False), (99, True)]))
    assert [offset for offset, _ in due_halves(rows, 49_999, 10)] == [0]
    assert [open_half(rows, offset).checks for offset in range(3)] == [0, 1, 0]
    assert [offset for offset, _ in due_halves(rows, 50_000, 10)] == [0, 1, 2]
    machine.apply(committing(log, 1), ChecksSent(60_000, [(1, True)]))
    assert open_half(rows, 1) is None
    assert [offset for offset, _ in due_halves(rows, 70_000, 10)] == [0, 2]


def test_a_void_rider_leaves_the_transaction_open(machine, log):
    machine.apply(opening(log))
    command = committing(log, 0)
    machine.apply(encode_delete_topic("real"), command)
    assert open_half(machine.store.rows, 0) is not None, "its message was not stored"


def test_ends_are_forgotten_after_an_hour(machine, log):
    for number in range(30):
        machine.apply(opening(log))
        machine.apply(EndHalves(5000, [(number, Outcome.ROLLED_BACK)]))
    for number in range(30, 34):
        machine.apply(opening(log))
        machine.apply(EndHalves(5000 + ENDS_KEPT_MS, [(number, Outcome.ROLLED_BACK)]))
    assert [ended_half(machine.store.rows, n) is None for n in (0, 29, 30, 33)] == [
        True,
        True,
        False,
        False,
    ]


def test_any_restart_gives_the_same_state(machine, log, tmp_path_factory):
    commands = [opening(log) for _ in range(4)]
    commands.append(committing(log, 2))
    commands.append(ChecksSent(9000, [(0, True), (1, True)]))
    commands.append(EndHalves(9500, [(1, Outcome.GIVEN_UP)]))
    commands.append(
        log.messages(9900, (REAL, end_rider(0, Outcome.COMMITTED)), (HALF, open_rider("pg", 0)))
    )
    machine.apply(*commands)
    other = Machine(tmp_path_factory.mktemp("other"))
    other.apply(*(encode_put_topic(TopicConfig(name=name)) for name in ("half", "real")))
    for command in commands:
        other.apply(command)
        other.reopen()
    assert other.store.digest() == machine.store.digest()
    other.store.close()


@pytest.mark.parametrize("cut", [1, 7, 8, 20, 8 + RIDER.size + 5])
def test_malformed_commands_are_never_skipped(log, cut):
    command = opening(log)
    decode_riders(command)
    with pytest.raises(InvariantError):
        decode_riders(command[:cut])
    with pytest.raises(InvariantError):
        decode_riders(b"\x32\x02" + command[2:])


def test_riders_are_as_large_as_they_say(log):
    rider = Rider(1, b"abc")
    assert rider.size_bytes == RIDER.size + 3
    (read,), messages = decode_riders(opening(log, group="g"))
    assert read.payload == b"\x00\x00\x17\x70g"
    assert messages[0] == 0x10


def test_what_is_a_half_message():
    assert is_half(4, "")
    assert is_half(0, "TRAN_MSG\x01true\x02")
    assert not is_half(0, "TRAN_MSG\x01false\x02")
    assert not is_half(0, "x\x01TRAN_MSG\x02")
    assert not is_half(8, "")


def test_properties_of_half_messages():
    raw, group, immunity = half_properties(
        "REAL_TOPIC\x01evil\x02a\x011\x02", topic="t", queue_id=3, producer_group="pg"
    )
    assert decode_properties(raw.encode()) == {
        "REAL_TOPIC": "t",
        "REAL_QID": "3",
        "TRAN_MSG": "true",
        "PGROUP": "pg",
        "a": "1",
    }
    assert (group, immunity) == ("pg", None)
    name = "CHECK_IMMUNITY_TIME_IN_SECONDS"
    for text, seconds in (("10", 10), ("-1", None)):
        raw = f"PGROUP\x01own\x02{name}\x01{text}\x02"
        assert half_properties(raw, topic="t", queue_id=0, producer_group="pg")[1:] == (
            "own",
            seconds,
        )
    for text in ("x", "-2", "nan", "1e99"):
        with pytest.raises(MessageRejectedError):
            half_properties(f"{name}\x01{text}\x02", topic="t", queue_id=0, producer_group="p")


@pytest.mark.parametrize(
    "delay", ["DELAY\x013", "TIMER_DELAY_SEC\x015", "TIMER_DELAY_MS\x015", "TIMER_DELIVER_MS\x019"]
)
def test_a_half_message_cannot_be_delayed(delay):
    with pytest.raises(MessageRejectedError, match="cannot be delayed"):
        half_properties(f"a\x011\x02{delay}\x02", topic="t", queue_id=0, producer_group="p")
    level_none = "DELAY\x010\x02"  # what a client writes that sets "no delay"
    assert half_properties(level_none, topic="t", queue_id=0, producer_group="p")[1] == "p"
