"""Frames: the golden vectors, lengths that lie, and the cost of many or large frames."""

from __future__ import annotations

import struct
import tracemalloc

import pytest

from dledger.errors import FrameTooLargeError, LocalProtocolError, RemoteProtocolError
from dledger.remoting.frames import Frame, FrameDecoder, decode_frames, encode_frame


def frame(header: bytes = b"{}", body: bytes = b"", type_: int = 0) -> bytes:
    return encode_frame(header, body, header_type=type_)


def test_frame_layout():
    assert encode_frame(b"hdr", b"body", header_type=1).hex() == "0000000b01000003686472626f6479"


def test_frames_of_one_read():
    data = frame(b"{1}", b"a") + frame(b"{22}") + frame(b"", b"b", 1)
    assert list(decode_frames(data)) == [
        Frame(0, b"{1}", b"a"),
        Frame(0, b"{22}", b""),
        Frame(1, b"", b"b"),
    ]


def test_more_data_before_the_frames_are_taken():
    decoder = FrameDecoder()
    for number in range(5):
        decoder.receive_data(frame(b"{%d}" % number))
    headers = []
    while (taken := decoder.next_frame()) is not None:
        headers.append(taken.header)
    assert headers == [b"{%d}" % number for number in range(5)]
    assert decoder.buffered_bytes == 0


@pytest.mark.parametrize("size", [1, 3, 7, 4096])
def test_pieces_of_any_size(size):
    data = frame(b"{}", b"x" * 10_000) + frame(b"{2}")
    decoder = FrameDecoder()
    frames = []
    for at in range(0, len(data), size):
        decoder.receive_data(data[at : at + size])
        while (taken := decoder.next_frame()) is not None:
            frames.append(taken)
    assert [(f.header, len(f.body)) for f in frames] == [(b"{}", 10_000), (b"{2}", 0)]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x7f\xff\xff\xff", id="2 GB"),
        pytest.param(b"\xff\xff\xff\xff", id="negative"),
        pytest.param(b"\x01\x00\x00\x01", id="one byte over"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", id="TLS"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="HTTP"),
        pytest.param(b"PROXY TCP4 ", id="PROXY"),
    ],
)
def test_too_long_frames_are_refused_by_their_first_bytes(data):
    decoder = FrameDecoder()
    decoder.receive_data(data)
    tracemalloc.start()
    try:
        with pytest.raises(FrameTooLargeError) as caught:
            decoder.next_frame()
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert caught.value.limit_bytes == 16 * 1024 * 1024
    with pytest.raises(FrameTooLargeError):
        decoder.next_frame()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x00\x00\x00\x00", id="empty"),
        pytest.param(b"\x00\x00\x00\x03", id="no room for a header length"),
        pytest.param(b"\x00\x00\x00\x04\x00\x00\x00\x01", id="header longer than frame"),
        pytest.param(b"\x00\x00\x00\x08\x02\x00\x00\x01", id="unknown header type"),
        pytest.param(b"\x00\x10\x00\x00\x00\xff\xff\xff", id="header longer than a long frame"),
    ],
)
def test_lengths_that_disagree_are_refused_before_the_rest_has_come(data):
    decoder = FrameDecoder()
    decoder.receive_data(data)
    with pytest.raises(RemoteProtocolError):
        decoder.next_frame()


def test_the_limit_is_the_callers():
    data = frame(b"{}", b"x" * 95)
    FrameDecoder(101).receive_data(data)
    decoder = FrameDecoder(101)
    decoder.receive_data(data)
    assert decoder.next_frame() is not None
    decoder = FrameDecoder(100)
    decoder.receive_data(data)
    with pytest.raises(FrameTooLargeError):
        decoder.next_frame()


def test_we_do_not_write_too_long_frames():
    with pytest.raises(LocalProtocolError):
        encode_frame(b"{}", bytes(16 * 1024 * 1024))


def test_left_over_bytes_are_an_error_where_whole_frames_are_expected():
    with pytest.raises(RemoteProtocolError):
        list(decode_frames(frame() + b"\x00"))


def test_a_large_frame_in_small_pieces_is_copied_once_or_twice():
    body = bytes(4 * 1024 * 1024)
    data = frame(b"{}", body)
    decoder = FrameDecoder()
    copied = 0
    previous = b""
    for at in range(0, len(data), 1000):
        decoder.receive_data(data[at : at + 1000])
        taken = decoder.next_frame()
        if decoder._data is not previous:  # a join made a new buffer
            copied += len(decoder._data)
            previous = decoder._data
    assert taken is not None
    assert taken.body == body
    assert copied < 2 * len(data)


def test_an_announced_length_allocates_nothing():
    decoder = FrameDecoder()
    tracemalloc.start()
    try:
        decoder.receive_data(struct.pack(">II", 16 * 1024 * 1024, 10) + b"x" * 100)
        assert decoder.next_frame() is None
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert decoder.buffered_bytes == 108
