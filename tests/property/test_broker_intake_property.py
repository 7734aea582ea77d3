"""A batch stores what its messages would store one by one, whatever was remembered before."""

from dataclasses import dataclass

from hypothesis import example, given
from hypothesis import strategies as st

from broker.delay_rules import is_delayed
from broker.intake import MessageIntake
from broker.messages_command import EncodedMessage
from dledger.errors import MessageRejectedError
from dledger.message import encode_batch_element, pack_host

# Pieces that a careless search in a properties string would take for others.
_PIECES = (
    b"UNIQ_KEY\x01",
    b"MYUNIQ_KEY\x01v\x02",
    b"UNIQ_KEY\x01K7\x02",
    b"UNIQ_KEY\x01\x02",
    b"UNIQ_KEY\x01CLUSTER\x01x\x02",
    b"TAGS\x01a\x02",
    b"TAGS\x01a",
    b"KEYS\x01k l\x02",
    b"CLUSTER\x01c\x02",
    b"DELAY\x010\x02",
    b"DELAY\x013\x02",
    b"other\x01value\x02",
    b"\x02",
    b"Z",
)
_RAW = st.lists(st.sampled_from(_PIECES), max_size=4).map(b"".join)
_ELEMENTS = st.lists(st.tuples(st.integers(-5, 5), st.binary(max_size=9), _RAW), min_size=1)


@dataclass
class _Header:
    sys_flag: int = 0
    born_timestamp_ms: int = 5
    flag: int = 0
    properties: str = ""
    reconsume_times: int = 1
    batch: bool = False


def _intake() -> MessageIntake:
    return MessageIntake(
        cluster_name="C", store_host=pack_host("10.0.0.1", 1), new_unique_key=lambda: "NEW"
    )


def _encode(
    intake: MessageIntake, header: _Header, body: bytes, *, is_batch: bool
) -> list[EncodedMessage] | None:
    """Returns None for what is refused."""
    try:
        return intake.encode(
            header, body, topic="t", queue_id=2, born_host=bytes(8), is_batch=is_batch
        ).messages
    except MessageRejectedError:
        return None


# The second one's tag is `aUNIQ_KEY…`, though what is left without the key looks like the first's.
@example(
    batches=[
        [
            (0, b"", b"TAGS\x01a\x02UNIQ_KEY\x01K7\x02"),
            (0, b"", b"TAGS\x01aUNIQ_KEY\x01K7\x02\x02"),
        ]
    ]
)
@given(batches=st.lists(_ELEMENTS, min_size=1, max_size=4))
def test_a_batch_stores_what_its_messages_would_store_one_by_one(
    batches: list[list[tuple[int, bytes, bytes]]],
) -> None:
    shared = _intake()
    for elements in batches:
        body = b"".join(encode_batch_element(body, raw, flag) for flag, body, raw in elements)
        alone = [
            _encode(_intake(), _Header(flag=flag, properties=raw.decode()), piece, is_batch=False)
            for flag, piece, raw in elements
        ]
        together = _encode(shared, _Header(), body, is_batch=True)
        if None in alone or any(is_delayed(raw) for _, _, raw in elements):
            assert together is None  # all of it is refused
        else:
            assert together == [message for messages in alone for message in messages or ()]
