"""Any split of the bytes gives the same frames; any bytes give frames or the named error."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from dledger.errors import MalformedBodyError, RemoteProtocolError
from dledger.remoting.bodies import parse_lenient_json
from dledger.remoting.commands import decode_command, encode_binary, encode_request
from dledger.remoting.frames import Frame, FrameDecoder, encode_frame

FRAMES = st.lists(
    st.builds(Frame, st.integers(0, 1), st.binary(max_size=40), st.binary(max_size=300)), max_size=8
)
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


def take_all(decoder: FrameDecoder) -> list[Frame]:
    frames = []
    while (frame := decoder.next_frame()) is not None:
        frames.append(frame)
    return frames


@given(FRAMES, st.data())
def test_frames_do_not_depend_on_how_the_bytes_arrive(frames, data):
    stream = b"".join(encode_frame(f.header, f.body, header_type=f.header_type) for f in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    eager = data.draw(st.booleans())  # take frames after each piece, or only at the end
    decoder = FrameDecoder()
    seen: list[Frame] = []
    fed = 0
    for stop in [*cuts, len(stream)]:
        decoder.receive_data(stream[fed:stop])
        fed = stop
        if eager:
            seen += take_all(decoder)
            assert (
                decoder.buffered_bytes + sum(8 + len(f.header) + len(f.body) for f in seen) == fed
            )
    seen += take_all(decoder)
    assert seen == frames
    assert decoder.buffered_bytes == 0


@given(st.lists(st.binary(max_size=30), max_size=10))
def test_garbage_gives_frames_or_the_named_error(pieces):
    decoder = FrameDecoder(frame_bytes_max=64)
    for piece in pieces:
        decoder.receive_data(piece)
        try:
            for frame in take_all(decoder):
                decode_command(frame)
        except RemoteProtocolError:
            return
        assert decoder.buffered_bytes <= 64 + 4 + 30


@given(st.binary(max_size=80), st.integers(0, 1))
def test_garbage_headers_give_commands_or_the_named_error(header, header_type):
    with contextlib.suppress(RemoteProtocolError):
        decode_command(Frame(header_type, header, b""))


@given(
    st.integers(-(2**15), 2**15 - 1),
    st.integers(-(2**31), 2**31 - 1),
    st.dictionaries(TEXTS, TEXTS, max_size=5),
    st.binary(max_size=50),
)
def test_both_encodings_carry_the_same(code, opaque, ext, body):
    commands = []
    for data in (encode_request(code, opaque, ext, body), encode_binary(code, opaque, ext, body)):
        decoder = FrameDecoder()
        decoder.receive_data(data)
        [frame] = take_all(decoder)
        commands.append(decode_command(frame))
    first, second = commands
    assert (first.opaque, first.body, first.ext) == (opaque, body, ext)
    assert (second.opaque, second.body, second.ext) == (opaque, body, ext)
    assert first.code == code


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)  # fmt: skip


@given(JSON)
def test_the_tolerant_reader_reads_standard_json(value):
    import json

    bare = b"{1:" + json.dumps(value).encode() + b"}"
    assert parse_lenient_json(bare) == {"1": value}


@given(st.text(alphabet='{}[]:,"0123 -.eatrufls\\', max_size=40))
def test_the_tolerant_reader_ends_in_a_value_or_the_named_error(text):
    with contextlib.suppress(MalformedBodyError):
        parse_lenient_json(text.encode())
