"""Receipt handles and the fields of a pop's answer, byte for byte as Java's clients have them."""

import pytest

from dledger.errors import InvalidParameterError, MalformedBodyError
from dledger.message import (
    ReceiptHandle,
    decode_receipt,
    decode_start_offsets,
    encode_message_offsets,
    encode_order_counts,
    encode_start_offsets,
    retry_mark,
)
from dledger.remoting.bodies.popping import (
    BatchAckEntry,
    decode_assignments,
    decode_batch_ack,
    decode_query_assignment,
    decode_request_mode,
    encode_assignments,
    encode_batch_ack,
)

HANDLE = ReceiptHandle(100, 1_700_000_000_000, 60_000, 0, "0", "broker-a", 3, 105)
TEXT = "100 1700000000000 60000 0 0 broker-a 3 105"


def test_handles():
    assert HANDLE.encode() == TEXT
    assert decode_receipt(TEXT) == HANDLE
    assert decode_receipt(TEXT.rpartition(" ")[0], 105) == HANDLE
    assert decode_receipt(TEXT + " 4096") == HANDLE, "proxies add a physical offset"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 2 3",
        "x 1700000000000 60000 0 0 broker-a 3 105",
        "100 1700000000000 60000 0 0 broker-a -3 105",
        "100 1700000000000 60000 0 0 broker-a 3 " + "9" * 40,
        "100  1700000000000 60000 0 0 broker-a 3",
    ],
)
def test_what_is_no_handle_is_refused(text):
    with pytest.raises(InvalidParameterError):
        decode_receipt(text)


def test_the_fields_of_an_answer():
    assert encode_start_offsets([("t", 0, 5), ("%RETRY%g", 1, 7)]) == "0 0 5;1 1 7"
    assert encode_message_offsets([("t", 0, [5, 6, 9]), ("t", 1, [0])]) == "0 0 5,6,9;0 1 0"
    assert encode_order_counts([("t", 0, 5, 1), ("t", 0, 6, 2)]) == "0 qo0%5 1;0 qo0%6 2"
    assert decode_start_offsets("0 0 5;1 1 7") == {("0", 0): 5, ("1", 1): 7}
    assert decode_start_offsets("") == {}
    with pytest.raises(InvalidParameterError):
        decode_start_offsets("0 0")


def test_marks():
    marks = [retry_mark(topic) for topic in ("t", "%RETRY%g", "%RETRY%g_t", "%RETRY%g+t")]
    assert marks == ["0", "1", "1", "2"]


def test_batches_of_acknowledgements():
    body = (
        b'{"brokerName":"broker-a","acks":[{"c":"g","t":"t","r":"0","so":100,"q":3,"rq":0,'
        b'"pt":1700000000000,"it":60000,"b":"AQI="}]}'
    )
    batch = decode_batch_ack(body)
    (entry,) = batch.acks
    assert entry.bitmap() == b"\x01\x02", "bits 0 and 9, as Java's BitSet writes them"
    assert (entry.group, entry.topic, entry.start, entry.queue_id) == ("g", "t", 100, 3)
    assert encode_batch_ack("broker-a", [entry]) == body
    for bits in ("*", "A" * 5000):
        with pytest.raises(MalformedBodyError):
            BatchAckEntry(group="g", topic="t", start=0, queue_id=0, pop_ms=1, bits=bits).bitmap()


def test_assignments():
    assert decode_assignments(encode_assignments(None, "PULL")).assignments is None
    asked = decode_query_assignment(
        b'{"clientId":"c","consumerGroup":"g","messageModel":"CLUSTERING",'
        b'"strategyName":"AVG","topic":"t"}'
    )
    assert (asked.topic, asked.group, asked.client_id, asked.strategy) == ("t", "g", "c", "AVG")
    mode = decode_request_mode(
        b'{"consumerGroup":"g","mode":"POP","popShareQueueNum":8,"topic":"t"}'
    )
    assert (mode.mode, mode.share_queue_count) == ("POP", 8)
    answer = decode_assignments(
        b'{"messageQueueAssignments":[{"messageQueue":{"brokerName":"a","queueId":-1,"topic":"t"},'
        b'"mode":"POP"}]}'
    )
    assert answer.assignments[0].queue.queue_id == -1
