"""Short blocking questions to servers, for `up` and `status`: no loop, no client, quick to import.

A server that does not answer in time simply yields `None`: whether that is bad is for the caller
to say.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

import msgspec

from dledger.codes import FRAME_BYTES_MAX, RequestCode, ResponseCode
from dledger.errors import DLedgerError
from dledger.remoting.commands import Command, decode_command, encode_request
from dledger.remoting.frames import FrameDecoder

_READ_BYTES = 64 * 1024
_json = msgspec.json.Decoder()


def call(
    address: str,
    code: int,
    ext: Mapping[str, object] | None = None,
    *,
    timeout_s: float = 1.0,
) -> Command | None:
    """Returns a server's answer, or `None` if there is none in time.

    Args:
        address: `host:port`.
        timeout_s: For connecting and for each read.
    """
    host, _, port = address.rpartition(":")
    decoder = FrameDecoder(FRAME_BYTES_MAX)
    try:
        with socket.create_connection((host, int(port)), timeout=timeout_s) as connection:
            connection.sendall(encode_request(code, 1, ext))
            while (frame := decoder.next_frame()) is None:
                data = connection.recv(_READ_BYTES)
                if not data:
                    return None
                decoder.receive_data(data)
            return decode_command(frame)
    except (OSError, ValueError, OverflowError, DLedgerError):
        return None


def broker_runtime(address: str, *, timeout_s: float = 1.0) -> dict[str, str] | None:
    """Returns what a broker replica says about itself: `replicaId`, `raftRole`, `raftTerm`, ..."""
    answer = call(address, RequestCode.GET_BROKER_RUNTIME_INFO, timeout_s=timeout_s)
    content = _content(answer)
    table = content.get("table") if content else None
    if not isinstance(table, dict):
        return None
    return {str(name): str(value) for name, value in table.items()}


def cluster_addresses(
    nameserver: str, *, timeout_s: float = 1.0
) -> dict[str, dict[int, str]] | None:
    """Returns broker addresses by broker name and id, as a nameserver knows them."""
    answer = call(nameserver, RequestCode.GET_BROKER_CLUSTER_INFO, timeout_s=timeout_s)
    content = _content(answer)
    table = content.get("brokerAddrTable") if content else None
    if not isinstance(table, dict):
        return None
    found: dict[str, dict[int, str]] = {}
    for name, data in table.items():
        addresses = data.get("brokerAddrs") if isinstance(data, dict) else None
        if isinstance(addresses, dict):
            found[str(name)] = {int(key): str(value) for key, value in addresses.items()}
    return found


def _content(answer: Command | None) -> dict[str, Any] | None:
    if answer is None or answer.code != ResponseCode.SUCCESS:
        return None
    try:
        content = _json.decode(answer.body)
    except msgspec.DecodeError:
        return None
    return content if isinstance(content, dict) else None
