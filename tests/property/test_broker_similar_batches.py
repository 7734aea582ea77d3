"""What is taken by column is stored byte for byte as message by message; the rest is left alone."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import example, given
from hypothesis import strategies as st

from broker.intake import MessageIntake
from broker.message_run import MessageRun
from broker.messages_command import EncodedMessage, MessagesBuilder, Part, SendIdentity
from dledger.errors import MessageRejectedError
from dledger.message import encode_batch_element, iter_batch, pack_host, similar_batch

HOSTS = [pack_host("10.0.0.1", 10911), pack_host("::1", 10911)]
OTHERS = st.sampled_from(
    [
        (b"", b""),
        (b"TAGS\x01a\x02", b""),
        (b"TAGS\x01a\x02", b"WAIT\x01true\x02"),
        (b"", b"a\x01b"),
        (b"KEYS\x01k\x02", b""),
        (b"DELAY\x013\x02", b""),
        (b"NOT_", b""),
        (b"a\x01" + b"x" * 300 + b"\x02", b""),
    ]
)
KEYS = st.sampled_from([b"%032X", b"%020d", b"%08d", b"%070d", b"%06d-", b""])
BODIES = st.one_of(
    st.tuples(st.integers(1, 30), st.integers(0, 40)).map(
        lambda shape: [bytes([n]) * shape[1] for n in range(shape[0])]
    ),
    st.lists(st.binary(max_size=9), min_size=1, max_size=8),
)


def batch(bodies: list[bytes], others: tuple[bytes, bytes], key: bytes, flag: int) -> bytes:
    """Returns the body of a request."""
    before, after = others
    return b"".join(
        encode_batch_element(
            body,
            before + b"UNIQ_KEY\x01" + (key % number if key else b"") + b"\x02" + after,
            flag,
        )
        for number, body in enumerate(bodies)
    )


def command(*parts: Part) -> tuple[bytes, list[list[int]]]:
    """Returns the command of messages to one queue, and where they went."""
    builder = MessagesBuilder()
    for part in parts:
        builder.add(1, 7, part)
    encoded = builder.encode(1000, 1_700_000_000_000, lambda *_: 2**40)
    return bytes(encoded), [part.physical_offsets for part in parts]


def intake() -> MessageIntake:
    return MessageIntake(cluster_name="C", store_host=HOSTS[0], new_unique_key=lambda: "NEW")


def header(flags: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        sys_flag=flags,
        born_timestamp_ms=1_600_000_000_000,
        reconsume_times=0,
        properties="",
        flag=0,
    )


@given(BODIES, OTHERS, KEYS, st.integers(-5, 5), st.sampled_from(HOSTS))
@example([b"x", b"yy"], (b"", b""), b"%032X", 0, HOSTS[1])
def test_by_column_or_one_by_one_is_the_same(bodies, others, key, flag, host):
    taken = intake()
    place = {"topic": "t" * 3, "queue_id": 7, "born_host": host}
    template, born_ms = taken.template("ttt", 0, 0, len(host)), 1_600_000_000_000
    body = batch(bodies, others, key, flag)
    for _ in range(2):  # what needs no attention is known the second time
        one_by_one: list[EncodedMessage] | None
        try:
            one_by_one = taken._encode_batch(template, template.born(born_ms, host), 7, body)
        except MessageRejectedError:
            one_by_one = None
        run = taken._encode_run(template, born_ms, host, 7, body)
        if one_by_one is None:
            assert run is None
        elif run is not None:
            identity = SendIdentity(5, 6)
            # Beside others, so that places and the order of index records are compared too.
            alone = taken.encode(header(), b"1", is_batch=False, **place).messages
            plain = Part(1, alone), Part(1, one_by_one, identity), Part(1, alone)
            quick = Part(1, alone), Part(1, run, identity), Part(1, alone)
            assert command(*quick) == command(*plain)
            assert quick[1].first_bytes == plain[1].first_bytes


def test_ordinary_batches_are_taken_by_column():
    """Equal lengths or not; else the property above would hold for nothing."""
    place = {"topic": "t", "queue_id": 7, "born_host": HOSTS[0], "is_batch": True}
    for bodies in ([b"x" * 10] * 20, [b"y" * n for n in range(20)]):
        taken = intake()
        body = batch(bodies, (b"TAGS\x01a\x02", b""), b"%032X", 0)
        assert isinstance(taken.encode(header(), body, **place).messages, list)
        assert isinstance(taken.encode(header(), body, **place).messages, MessageRun)


@given(
    BODIES,
    OTHERS,
    KEYS,
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=2),
    st.integers(0, 3),
)
def test_a_batch_that_is_read_by_column_is_what_its_elements_say(bodies, others, key, damage, cut):
    """Damaged ones too: whatever is wrong with a batch, only `iter_batch` speaks of it."""
    body = bytearray(batch(bodies, others, key, 0))
    for at, value in damage:
        body[int(at * len(body))] = value
    body = body[: len(body) - cut]
    found = similar_batch(bytes(body))
    if found is not None:
        assert [
            (found.flag, one, found.before + unique + found.after)
            for one, unique in zip(found.bodies, found.keys, strict=True)
        ] == [(one.flag, bytes(one.body), one.properties) for one in iter_batch(bytes(body))]
        assert all(unique.isalnum() for unique in found.keys)
