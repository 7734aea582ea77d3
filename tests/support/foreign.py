"""One request as another client sends it: its language and version, on a connection of its own."""

from __future__ import annotations

import asyncio

from dledger.codes import FRAME_BYTES_MAX
from dledger.remoting.commands import Command, decode_command, encode_request
from dledger.remoting.frames import FrameDecoder

JAVA_5_3_3 = 479


async def call_as(
    address: str, code: int, ext: object = None, *, language: str, version: int = JAVA_5_3_3
) -> Command:
    """Returns a server's answer."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    decoder = FrameDecoder(FRAME_BYTES_MAX)
    try:
        writer.write(encode_request(code, 1, ext, language=language, version=version))
        while (frame := decoder.next_frame()) is None:
            data = await reader.read(65_536)
            assert data, "the server closed the connection"
            decoder.receive_data(data)
        return decode_command(frame)
    finally:
        writer.close()
        await writer.wait_closed()
