"""Commands: both header encodings, coercion, and what other clients write."""

from __future__ import annotations

import json
from enum import Enum

import msgspec
import pytest

from dledger.codes import PROTOCOL_VERSION, RequestCode
from dledger.errors import (
    BrokerResponseError,
    FlowControlError,
    InvalidParameterError,
    LeadershipLostError,
    LocalProtocolError,
    RemoteProtocolError,
)
from dledger.remoting import admin_headers, pop_headers, reset_headers
from dledger.remoting import headers as h
from dledger.remoting import nameserver_headers as nh
from dledger.remoting.commands import (
    Command,
    decode_command,
    encode_binary,
    encode_ext,
    encode_request,
    encode_response,
)
from dledger.remoting.errors import error_answer, response_error
from dledger.remoting.frames import Frame, decode_frames

JSON_REQUEST = bytes.fromhex(
    """
    0000007f 00000079 7b22636f6465223a3130352c226578744669656c6473223a7b22746f706963223a2254227d
    2c22666c6167223a302c226c616e6775616765223a224a415641222c226f7061717565223a372c2273657269616c
    697a655479706543757272656e74525043223a224a534f4e222c2276657273696f6e223a307d 6869
    """
)
BINARY_REQUEST = bytes.fromhex(
    """
    00000029 01000023 0069 00 0000 00000007 00000000 00000002 6f6b 0000000c 0005 746f706963
    00000001 54 6869
    """
)
BINARY_ONEWAY = bytes.fromhex("00000019 01000015 0d72 00 01df ffffffff 00000002 00000000 00000000")


def decode(data: bytes) -> Command:
    [frame] = decode_frames(data)
    return decode_command(frame)


def of_ext(ext: object) -> Command:
    header = json.dumps({"code": 1, "opaque": 2, "extFields": ext}).encode()
    return decode_command(Frame(0, header, b""))


def same(command: Command) -> tuple[object, ...]:
    c = command
    return c.code, c.opaque, c.flag, c.version, c.language, c.remark, c.body, c.ext


# --- the vectors --------------------------------------------------------------------------------


def test_json_request():
    assert same(decode(JSON_REQUEST)) == (105, 7, 0, 0, "JAVA", "", b"hi", {"topic": "T"})
    assert encode_request(105, 7, {"topic": "T"}, b"hi", language="JAVA", version=0) == JSON_REQUEST


def test_binary_request():
    assert same(decode(BINARY_REQUEST)) == (105, 7, 0, 0, "JAVA", "ok", b"hi", {"topic": "T"})
    encoded = encode_binary(105, 7, {"topic": "T"}, b"hi", remark="ok", language="JAVA", version=0)
    assert encoded == BINARY_REQUEST


def test_binary_oneway_with_a_code_cut_to_16_bits():
    command = decode(BINARY_ONEWAY)
    assert same(command) == (200050, -1, 2, 479, "JAVA", "", b"", {})
    assert command.is_oneway
    assert not command.is_response
    assert encode_binary(3442, -1, flag=2, language="JAVA", version=479) == BINARY_ONEWAY


@pytest.mark.parametrize("code", [*range(200050, 200057), 200151])
def test_pop_codes_come_back_from_binary_headers(code):
    assert decode(encode_binary(code, 1)).code == code


def test_response_codes_of_binary_headers_stay():
    assert decode(encode_binary(3442, 1, flag=1)).code == 3442
    assert decode(encode_binary(-1000, 1, flag=1)).code == -1000


# --- what we write ------------------------------------------------------------------------------


def test_response_without_fields_has_no_ext_fields():
    [frame] = decode_frames(encode_response(17, -5, None, 'no "topic"\n'))
    assert json.loads(frame.header) == {
        "code": 17,
        "flag": 1,
        "language": "PYTHON",
        "opaque": -5,
        "remark": 'no "topic"\n',
        "serializeTypeCurrentRPC": "JSON",
        "version": PROTOCOL_VERSION,
    }


def test_response_fields_are_texts():
    class Color(Enum):
        RED = "red"

    ext = {"a": 1, "b": True, "c": False, "d": None, "e": "x", "f": Color.RED, "g": RequestCode(10)}
    [frame] = decode_frames(encode_response(0, 1, ext, body=b"body"))
    assert json.loads(frame.header)["extFields"] == {
        "a": "1",
        "b": "true",
        "c": "false",
        "e": "x",
        "f": "red",
        "g": "10",
    }
    assert frame.body == b"body"


def test_request_flags():
    assert decode(encode_request(10, 1, oneway=True)).is_oneway
    assert not decode(encode_request(10, 1)).is_oneway
    assert decode(encode_response(0, 1)).is_response


def test_header_records_are_taken_as_fields():
    header = h.PullMessageResponse(next_begin_offset=5, offset_min=1, offset_max=9)
    command = decode(encode_response(0, 1, header))
    assert command.ext == {
        "suggestWhichBrokerId": "0",
        "nextBeginOffset": "5",
        "minOffset": "1",
        "maxOffset": "9",
    }
    assert command.header(h.PullMessageResponse) == header


def test_what_cannot_be_encoded_is_our_error():
    with pytest.raises(LocalProtocolError):
        encode_ext({"a": "\ud800"})
    assert b"ud800" in encode_response(1, 1, None, "\ud800")


# --- what others write --------------------------------------------------------------------------

V2_TEXTS = {
    "a": "pg",
    "b": "T",
    "c": "TBW102",
    "d": "4",
    "e": "-1",
    "f": "0",
    "g": "1700000000000",
    "h": "7",
    "i": "TAGS\u0001A\u0002",
    "j": "0",
    "k": "false",
    "l": "16",
    "m": "true",
    "n": "broker-a",
}
V2 = h.SendMessageHeaderV2(
    producer_group="pg",
    topic="T",
    queue_id=-1,
    born_timestamp_ms=1700000000000,
    flag=7,
    properties="TAGS\x01A\x02",
    max_reconsume_times=16,
    batch=True,
    broker_name="broker-a",
)
# C++ writes numbers and booleans as such; Node whatever its values happen to be.
V2_NUMBERS = V2_TEXTS | {
    "d": 4,
    "e": -1,
    "f": 0,
    "g": 1700000000000,
    "h": 7.0,
    "j": None,
    "k": False,
    "l": 16,
    "m": 1,
}
V2_ODD = V2_TEXTS | {"d": " 4 ", "e": "-01", "h": "+7", "j": "", "k": 0, "l": "16", "m": "TRUE"}


@pytest.mark.parametrize("ext", [V2_TEXTS, V2_NUMBERS, V2_ODD, V2_TEXTS | {"zzz": {"x": [1]}}])
def test_send_headers_of_all_clients(ext):
    assert of_ext(ext).header(h.SendMessageHeaderV2) == V2


def test_send_headers_in_binary():
    assert decode(encode_binary(310, 1, V2_TEXTS)).header(h.SendMessageHeaderV2) == V2
    assert decode(encode_binary(310, 1, V2)).header(h.SendMessageHeaderV2) == V2


def test_long_and_short_send_headers_have_the_same_attributes():
    assert h.SendMessageHeader.__struct_fields__ == h.SendMessageHeaderV2.__struct_fields__


def test_names_that_look_like_numbers_stay_as_written():
    header = of_ext({"topic": 42, "key": "007", "maxNum": "32"}).header(h.QueryMessageHeader)
    assert (header.topic, header.key) == ("42", "007")


def test_ext_is_all_texts():
    command = of_ext({"a": 1, "b": True, "c": False, "d": None, "e": "x", "f": 1.5, "g": [1]})
    assert command.ext == {"a": "1", "b": "true", "c": "false", "e": "x", "f": "1.5", "g": "[1]"}
    assert command.ext is command.ext


@pytest.mark.parametrize("ext", [None, {}])
def test_no_ext(ext):
    command = of_ext(ext)
    assert command.ext == {}
    assert command.header(h.GetAllTopicConfigHeader) == h.GetAllTopicConfigHeader()
    with pytest.raises(InvalidParameterError, match="topic"):
        command.header(nh.GetRouteHeader)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"e": "x"}, "`$.e`"),
        ({"e": "1.5"}, "`$.e`"),
        ({"e": 2**31}, "`$.e`"),
        ({"g": "9223372036854775808"}, "`$.g`"),
        ({"g": "1" * 400}, "`$.g`"),
        ({"e": None}, "`e`"),
        ({"e": ""}, "`e`"),
        ({"b": None}, "`b`"),
        ({"e": [1]}, "`$.e`"),
    ],
)
def test_bad_fields_are_named(change, named):
    with pytest.raises(InvalidParameterError) as caught:
        of_ext(V2_TEXTS | change).header(h.SendMessageHeaderV2)
    assert named in str(caught.value)


def test_fields_missing_from_binary_headers_are_named():
    with pytest.raises(InvalidParameterError, match="`b`"):
        decode(encode_binary(310, 1, {**V2_TEXTS, "b": ""})).header(h.SendMessageHeaderV2)


@pytest.mark.parametrize("ext", [[1], "x", 5])
def test_ext_that_is_no_object(ext):
    command = of_ext(ext)
    with pytest.raises(InvalidParameterError):
        _ = command.ext
    with pytest.raises(InvalidParameterError):
        command.header(nh.GetRouteHeader)


def test_ext_that_is_not_utf8():
    command = decode_command(Frame(0, b'{"code":1,"extFields":{"topic":"\xff"}}', b""))
    with pytest.raises(InvalidParameterError):
        command.header(nh.GetRouteHeader)


@pytest.mark.parametrize(
    "header",
    [
        b'{"code":1}',
        b'{"code":"1","opaque":"2","flag":"0","version":"477","unknown":[{}]}',
        b'{"code":1,"language":null,"remark":null,"extFields":null}',
        b'  {"code" : 1 , "language" : "KLINGON"}',
    ],
)
def test_lenient_headers(header):
    assert decode_command(Frame(0, header, b"")).code == 1


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"code":"x"}',
        b'{"code":99999999999}',
        b'{"opaque":2147483648}',
        b'{"code":1}x',
        b'{"code":1,"remark":"\xff"}',
        b'{"code":1,"extFields":' + b"[" * 100_000,
        b'{"x":' * 100_000,
    ],
)
def test_headers_that_are_no_commands(header):
    with pytest.raises(RemoteProtocolError):
        decode_command(Frame(0, header, b""))


@pytest.mark.parametrize("cut", range(35))
def test_torn_binary_headers(cut):
    header = BINARY_REQUEST[8:43]
    with pytest.raises(RemoteProtocolError):
        decode_command(Frame(1, header[:cut], b""))


@pytest.mark.parametrize(
    ("at", "value"),
    [
        pytest.param(13, "ffffffff", id="negative remark"),
        pytest.param(13, "7fffffff", id="long remark"),
        pytest.param(19, "ffffffff", id="negative table"),
        pytest.param(19, "7fffffff", id="long table"),
        pytest.param(23, "ffff", id="negative name"),
        pytest.param(23, "7fff", id="long name"),
        pytest.param(30, "ffffffff", id="negative value"),
        pytest.param(30, "00000002", id="long value"),
        pytest.param(30, "00000000", id="short value"),
        pytest.param(17, "ff", id="remark is not UTF-8"),
    ],
)
def test_damaged_binary_headers(at, value):
    header = bytearray(BINARY_REQUEST[8:43])
    header[at : at + len(value) // 2] = bytes.fromhex(value)
    with pytest.raises(RemoteProtocolError):
        decode_command(Frame(1, bytes(header), b""))


def test_binary_header_of_an_unknown_language():
    header = bytearray(BINARY_REQUEST[8:43])
    header[2] = 200
    assert decode_command(Frame(1, bytes(header), b"")).language == "OTHER"


def test_unknown_header_type():
    with pytest.raises(RemoteProtocolError):
        decode_command(Frame(2, b"{}", b""))


# --- headers ------------------------------------------------------------------------------------

HEADERS = sorted(
    {
        value
        for module in (h, nh, admin_headers, pop_headers, reset_headers)
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, msgspec.Struct)
        and value is not msgspec.Struct
    },
    key=lambda type_: type_.__name__,
)


@pytest.mark.parametrize("type_", HEADERS, ids=lambda type_: type_.__name__)
def test_every_header_round_trips(type_):
    samples = {str: "text", bool: True, int: 7}
    values = {}
    for info in msgspec.structs.fields(type_):
        kind = next(kind for kind in (str, bool, int) if kind.__name__ in repr(info.type))
        values[info.name] = samples[kind]
    header = type_(**values)
    command = decode(encode_request(1, 1, header))
    assert command.header(type_) == header
    assert decode(encode_binary(1, 1, header)).header(type_) == header


def test_absent_and_empty_optional_fields_are_not_sent():
    header = h.UnregisterClientHeader(client_id="")
    assert h.to_ext(header) == {"clientID": ""}


def test_our_term_travels_with_a_registration():
    ext = h.to_ext(
        nh.RegisterBrokerHeader(
            broker_name="b", broker_address="a:1", cluster_name="c", broker_id=0, term=7
        )
    )
    assert ext["dlTerm"] == "7"


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "outcome"),
    [
        (InvalidParameterError("bad"), 29, "refused"),
        (FlowControlError("bad"), 2, "refused"),
        (LeadershipLostError("bad"), 1, "unknown"),
        (BrokerResponseError(17, "bad", definite=True), 17, "refused"),
        (ValueError("bad"), 1, "unknown"),
    ],
)
def test_errors_travel_with_their_outcome(error, code, outcome):
    answer, ext, remark = error_answer(error)
    assert (answer, ext) == (code, {"dlOutcome": outcome})
    assert "bad" in remark
    response = decode(encode_response(answer, 1, ext, remark))
    back = response_error(response, "a:1")
    assert (back.code, back.definite) == (code, outcome == "refused")


def test_errors_of_servers_without_our_fields():
    assert response_error(decode(encode_response(17, 1))).definite
    assert not response_error(decode(encode_response(1, 1))).definite
