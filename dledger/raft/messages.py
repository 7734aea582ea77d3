"""Raft messages as bytes: a length, a msgpack header, then raw log records. No pickle.

    0        4        6                6 + n
    +--------+--------+----------------+---------------------+
    | total  | n      | msgpack header | records, as stored  |
    +--------+--------+----------------+---------------------+
      uint32   uint16   n bytes          total - 2 - n bytes

`total` counts everything after itself. Both lengths are checked before anything is taken. The
header is a map whose `type` names the message; the field names are pysyncobj's own.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from dledger.errors import FrameTooLargeError, RemoteProtocolError
from dledger.raft.protocols import Buffer

PREFIX = struct.Struct(">IH")
RAFT_FRAME_BYTES_MAX = 32 * 1024 * 1024

# Fields and types that a message must have before the engine sees it.
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "append_entries": {
        "term": int,
        "commit_index": int,
        "prevLogIdx": int,
        "prevLogTerm": int,
        "session": int,
        "round": int,
    },
    "next_node_idx": {
        "term": int,
        "next_node_idx": int,
        "success": bool,
        "reset": bool,
        "session": int,
        "round": int,
    },
    "request_vote": {"term": int, "last_log_index": int, "last_log_term": int},
    "response_vote": {"term": int},
    "pre_vote": {"term": int, "last_log_index": int, "last_log_term": int},
    "pre_vote_response": {"term": int, "current_term": int, "granted": bool},
    "timeout_now": {"term": int},
    "snapshot_piece": {
        "term": int,
        "round": int,
        "applied_index": int,
        "size": int,
        "crc": int,
        "position": int,
        "piece_crc": int,
    },
    "snapshot_end": {
        "term": int,
        "round": int,
        "applied_index": int,
        "crc": int,
        "configuration": bytes,
    },
    "snapshot_reply": {
        "term": int,
        "round": int,
        "applied_index": int,
        "position": int,
        "first_index": int,
    },
}

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[str, Any]).decode


def encode_message(message: dict[str, Any]) -> list[Buffer]:
    """Returns the frame as buffers to be written one after the other; records are not copied."""
    records: Sequence[Buffer] = message.get("records", ())
    if "records" in message:
        message = {key: value for key, value in message.items() if key != "records"}
    header = _encode(message)
    size = 2 + len(header) + sum(map(len, records))
    if size > RAFT_FRAME_BYTES_MAX:
        raise FrameTooLargeError(size, RAFT_FRAME_BYTES_MAX)
    return [PREFIX.pack(size, len(header)) + header, *records]


def decode_message(header: Buffer, payload: bytes) -> dict[str, Any]:
    """Returns the message of a frame's header and payload, with its fields checked.

    Raises:
        RemoteProtocolError: Not a message of ours.
    """
    try:
        message = _decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"undecodable Raft message: {error}") from error
    fields = _FIELDS.get(str(message.get("type")))
    if fields is None:
        raise RemoteProtocolError(f"unknown Raft message type {message.get('type')!r}")
    for name, type_ in fields.items():
        if type(message.get(name)) is not type_:  # nor a bool for an int
            raise RemoteProtocolError(f"Raft message {message['type']}: bad field {name}")
    message["payload"] = payload
    return message


class MessageDecoder:
    """Cuts a byte stream into frames. Holds at most one frame; checks lengths first."""

    def __init__(self, frame_bytes_max: int = RAFT_FRAME_BYTES_MAX) -> None:
        self._buffer = bytearray()
        self._frame_bytes_max = frame_bytes_max

    def receive_data(self, data: Buffer) -> list[tuple[bytes, bytes]]:
        """Takes bytes and returns the header and payload of every frame that is complete.

        Raises:
            RemoteProtocolError: A length is impossible. The stream cannot be used any more.
        """
        self._buffer += data
        frames: list[tuple[bytes, bytes]] = []
        position = 0
        with memoryview(self._buffer) as view:
            while len(view) - position >= PREFIX.size:
                total, header_size = PREFIX.unpack_from(view, position)
                if total > self._frame_bytes_max:
                    raise FrameTooLargeError(total, self._frame_bytes_max)
                if total < 2 + header_size:
                    raise RemoteProtocolError("Raft frame: header longer than the frame")
                end = position + 4 + total
                if end > len(view):
                    break
                body = position + PREFIX.size + header_size
                frames.append((bytes(view[position + PREFIX.size : body]), bytes(view[body:end])))
                position = end
        if position:
            del self._buffer[:position]
        return frames
