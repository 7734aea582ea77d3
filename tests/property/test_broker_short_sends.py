"""The short way of ordinary sends stores and answers the same bytes as the general one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from random import Random
from typing import Any

from broker.intake import MessageIntake
from dledger.message import encode_batch_element
from dledger.remoting.commands import encode_binary
from dledger.remoting.frames import encode_frame
from tests.support.send_sides import TOPICS, Side, make_intake

SEEDS = 400
_PIECES = (
    "UNIQ_KEY\x017F00000100\x02",
    "UNIQ_KEY\x01K\x02",
    "UNIQ_KEY\x01not plain\x02",
    "UNIQ_KEY\x01\x02",
    "XUNIQ_KEY\x01K\x02",
    "UNIQ_KEY\x01K",
    "TAGS\x01a\x02",
    "TAGS\x01b",
    "KEYS\x01k l\x02",
    "KEYS\x01m\x02",
    "KEYS\x01\x02",
    "KEYS\x01 \x02",
    "KEYS\x01k",
    "XKEYS\x01k\x02",
    "KEYS\x01DELAY\x02",
    "KEYS\x01a\x01CLUSTER\x01b\x02",
    "WAIT\x01true\x02",
    "CLUSTER\x01c\x02",
    "POP_CK\x01c\x02",
    "DELAY\x010\x02",
    "TIMER_DELIVER_MS\x01x\x02",
    "TRAN_MSG\x01true\x02",
    "TRAN_MSG\x01false\x02",
    "né\x01ü\x02",
    "\x02",
    "long\x01" + "v" * 260 + "\x02",
)
_KEY = "UNIQ_KEY\x017F00000100\x02"
_ODD = (None, "", "x", "7", 7, -1, True, "true", 2**31, 2**63, 1.5, [], "\ud800")
_LONG_NAMES = (
    "producerGroup topic defaultTopic defaultTopicQueueNums queueId sysFlag bornTimestamp "
    "flag properties reconsumeTimes unitMode maxReconsumeTimes batch"
)
_LONG = dict(zip("abcdefghijklm", _LONG_NAMES.split(), strict=True))
# What may be unusual about a request, as (how often, field of the header, values).
_UNUSUAL = (
    (0.3, "b", [topic.name for topic in TOPICS] + ["unknown", "SCHEDULE_TOPIC_XXXX"]),
    (0.15, "e", [2, 3, 4, -1, "1", "x"]),
    (0.2, "f", [1, 4, 8, 12, 16, 32, -1]),
    (0.1, "g", ["5", -3, 2**62]),
    (0.1, "h", [5, -1]),
    (0.15, "j", [1, -1]),
    (0.05, "m", [True, "true"]),
    (0.03, "dlBornHost", ["1.2.3.4:5"]),
    (0.03, "dlProducerId", ["00000000000000ff", "x"]),
    (0.03, "dlSequence", ["3"]),
)


def _request(random: Random) -> bytes:
    """One frame: an ordinary send, with a few things about it that are not."""

    def sometimes(probability: float) -> bool:
        return random.random() < probability

    fields: dict[str, Any] = {
        "a": "group",
        "b": "t",
        "c": "TBW102",
        "d": 4,
        "e": random.randrange(2),
        "f": 0,
        "g": 1_700_000_000_000,
        "h": 0,
        "i": _KEY + "WAIT\x01true\x02TAGS\x01a\x02",
        "j": 0,
        "k": "false",
        "m": "false",
    }
    if sometimes(0.4):
        pieces = random.choices(_PIECES, k=random.randrange(3))
        pieces.insert(random.randrange(len(pieces) + 1), random.choice([_KEY, *_PIECES]))
        fields["i"] = "".join(pieces)
    for probability, name, values in _UNUSUAL:
        if sometimes(probability / 4):
            fields[name] = random.choice(values)
    if sometimes(0.05):
        fields[random.choice(list(fields))] = random.choice(_ODD)
    if sometimes(0.03):
        del fields[random.choice(list(fields))]
    body = random.choices([b"", b"x", bytes(100), bytes(40_000)], [4, 4, 4, 1])[0]
    code = random.choices([310, 10, 320, 12], [80, 10, 5, 5])[0]
    if code == 10:
        fields = {_LONG.get(name, name): value for name, value in fields.items()}
    if fields.get("m") in (True, "true") or code == 320:
        body = encode_batch_element(body, b"UNIQ_KEY\x01K\x02") * 2
    opaque = random.randrange(-(2**31), 2**31)
    if sometimes(0.03):
        texts = {name: str(value) for name, value in fields.items() if value != "\ud800"}
        return bytes(encode_binary(code, opaque, texts, body))
    command: dict[str, Any] = {
        "code": code,
        "extFields": fields,
        "flag": random.choices([0, 2, 1], [90, 8, 2])[0],
        "language": random.choice(["JAVA", "GO", "?"]),
        "opaque": opaque,
        "serializeTypeCurrentRPC": "JSON",
        "version": 401,
    }
    if sometimes(0.005):
        command[random.choice(list(command))] = random.choice(_ODD)
    if sometimes(0.05):
        command = dict(sorted(command.items(), reverse=True))
    separators = (", ", ": ") if sometimes(0.05) else (",", ":")
    header = json.dumps(command, separators=separators, ensure_ascii=sometimes(0.5))
    data = header.encode("utf-8", "surrogatepass")
    if sometimes(0.02):
        data = data[:-1] + b',"code":12}'  # the last one counts
    if sometimes(0.002):
        data = data[: random.randrange(len(data))]  # torn JSON ends the connection
    return encode_frame(data, body)


async def _compare(seed: int, intakes: Sequence[MessageIntake]) -> tuple[int, int]:
    """Returns how many requests there were, and how many of them took the short way."""
    random = Random(seed)
    inflight_max = random.choice([2, 4096])
    sides = [
        Side(intake, short=short, inflight_max=inflight_max)
        for intake, short in zip(intakes, (True, False), strict=True)
    ]
    count, rest = 0, b""
    for _ in range(random.randrange(1, 6)):
        requests = [_request(random) for _ in range(random.randrange(1, 12))]
        count += len(requests)
        data = rest + b"".join(requests)
        at = random.randrange(len(data) + 1)
        outcome = random.choices(["done", "lost", "refused"], [8, 1, 1])[0]
        for side in sides:
            await side.turn(data[:at], outcome)
        rest = data[at:]
    for side in sides:
        await side.turn(rest, "done")
    short, general = sides
    for one, other in zip(short.result(), general.result(), strict=True):
        assert one == other, f"seed {seed}"
    return count, short.taken


def test_both_ways_store_and_answer_the_same() -> None:
    async def main() -> None:
        count = taken = 0
        intakes = [make_intake(), make_intake()]
        for seed in range(SEEDS):
            requests, short = await _compare(seed, intakes)
            count, taken = count + requests, taken + short
        assert 0.2 < taken / count < 0.8, (taken, count)

    asyncio.run(main())


def test_ordinary_sends_take_the_short_way() -> None:
    """Else the comparison above would show nothing."""

    async def main() -> None:
        side = Side(make_intake(), short=True, inflight_max=4096)
        header = {
            "code": 310,
            "extFields": {
                "a": "g",
                "b": "t",
                "e": "1",
                "g": "5",
                "i": "UNIQ_KEY\x01K\x02TAGS\x01a\x02",
            },
            "flag": 0,
            "language": "JAVA",
            "opaque": 3,
            "version": 401,
        }
        data = json.dumps(header, separators=(",", ":")).encode()
        await side.turn(encode_frame(data, b"one") + encode_frame(data, b"two"), "done")
        assert side.taken == 2
        answers, entries, *_ = side.result()
        assert len(answers) == 2 and len(entries) == 1

    asyncio.run(main())


def test_what_stands_inside_a_tag_is_no_key() -> None:
    """Without its key, the second one looks like the first."""

    async def main() -> None:
        side = Side(make_intake(), short=True, inflight_max=4096)
        for properties, taken in (
            ("TAGS\x01a\x02UNIQ_KEY\x01K7\x02", 1),
            ("TAGS\x01aUNIQ_KEY\x01K7\x02\x02", 1),
        ):
            fields = {"a": "g", "b": "t", "e": "1", "g": "5", "i": properties}
            header = {"code": 310, "extFields": fields, "opaque": 3}
            data = json.dumps(header, separators=(",", ":")).encode()
            await side.turn(encode_frame(data, b"one"), "done")
            assert side.taken == taken

    asyncio.run(main())


def test_a_producers_number_is_seen_however_its_name_is_written() -> None:
    """JSON may escape any letter; whoever numbers their sends goes the general way."""

    async def main() -> None:
        side = Side(make_intake(), short=True, inflight_max=4096)
        for name, taken in (("x", 1), ("dlProducerId", 1), ("\\u0064lProducerId", 1)):
            data = (
                rb'{"code":310,"extFields":{"a":"g","b":"t","e":"1","g":"5",'
                rb'"i":"UNIQ_KEY\u0001K7\u0002","%b":"%016x"},"opaque":3}'
            ) % (name.encode(), 255)
            await side.turn(encode_frame(data, b"one"), "done")
            assert side.taken == taken

    asyncio.run(main())
