"""One end of a connection, the same for servers and clients.

A link cuts what arrives into commands, matches responses to its own requests, hands the rest to
its owner, and gathers all that is sent during one turn of the event loop into one write.

Limits of a link, each a field of `LinkLimits`: the length of a frame; the bytes waiting to be
written above which nothing more is read; the bytes waiting to be written at which a peer that does
not read is given up; the requests that wait for an answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from dledger.codes import FRAME_BYTES_MAX, CommandFlag, ResponseCode
from dledger.errors import (
    ConnectFailedError,
    ConnectionLostError,
    DLedgerError,
    FlowControlError,
    LocalProtocolError,
    RemoteProtocolError,
    RequestTimeoutError,
)
from dledger.remoting.commands import Command, Ext, decode_command, encode_ext, encode_head
from dledger.remoting.errors import error_answer
from dledger.remoting.frames import Frame, FrameDecoder

logger = logging.getLogger(__name__)

Buffer = bytes | bytearray | memoryview
Body = Buffer | Sequence[Buffer]

_RESPONSE = int(CommandFlag.RESPONSE)
_ONEWAY = int(CommandFlag.ONEWAY)
_FRAMES_AT_ONCE = 128  # cut from the stream before the first of them is looked at
_JOIN_BYTES_MAX = 64 * 1024  # up to here copying is cheaper than many small buffers


class LinkLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one connection may cost."""

    frame_bytes_max: int = FRAME_BYTES_MAX
    write_high_water_bytes: int = 1024 * 1024
    write_bytes_max: int = 64 * 1024 * 1024
    waiters_max: int = 4096
    close_timeout_s: float = 5.0


# Gets the response, or the error that ended the request.
AnswerCallback = Callable[[Command | None, DLedgerError | None], None]


class Asked:
    """A request that calls back when it is over: without the task and the turns of one awaited."""

    __slots__ = ("_callback", "_link", "_opaque")

    def __init__(self, link: Link, opaque: int, callback: AnswerCallback) -> None:
        self._link = link
        self._opaque = opaque
        self._callback: AnswerCallback | None = callback

    def done(self) -> bool:
        """Whether it is over."""
        return self._callback is None

    def cancel(self) -> None:
        """Does not call back any more; what the request does, it does."""
        self._end()

    def set_result(self, response: Command) -> None:
        """Ends it with the response."""
        callback = self._end()
        if callback is not None:
            callback(response, None)

    def set_exception(self, error: DLedgerError) -> None:
        """Ends it with an error."""
        callback = self._end()
        if callback is not None:
            callback(None, error)

    def _end(self) -> AnswerCallback | None:
        callback, self._callback = self._callback, None
        if callback is not None:
            self._link._ask_over(self._opaque)
        return callback


class Link(asyncio.Protocol):
    """One end of a connection. Everything happens on its event loop."""

    def __init__(self, limits: LinkLimits) -> None:
        self.peer_host = ""
        self.peer_port = 0
        self.context: dict[str, object] = {}
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._decoder = FrameDecoder(limits.frame_bytes_max)
        self._frames: deque[Frame] = deque()  # cut from the stream, not handed on yet
        self._transport: asyncio.Transport | None = None
        self._closing = False
        self._lost = self._loop.create_future()
        self._out: list[Buffer] = []
        self._out_bytes = 0
        self._high_water_bytes = limits.write_high_water_bytes
        self._write_paused = False
        self._read_paused = False
        self._read_stopped = False
        self._takes_runs = False  # whether `_take_run` is worth calling
        self._heard = True  # something was read since the last look at idle connections
        self._opaque = 0
        self._waiters: dict[int, asyncio.Future[Command] | Asked] = {}
        self._unflushed: set[int] = set()  # requests that certainly have not been sent yet

    # --- what the owner may ask and do ---

    @property
    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._closing

    @property
    def peer(self) -> str:
        """The peer's address as `host:port`."""
        host = f"[{self.peer_host}]" if ":" in self.peer_host else self.peer_host
        return f"{host}:{self.peer_port}"

    @property
    def write_buffered_bytes(self) -> int:
        """Bytes accepted for sending that the operating system has not taken yet."""
        if self._transport is None:
            return 0
        return self._out_bytes + self._transport.get_write_buffer_size()

    def reply(
        self,
        command: Command,
        code: int = ResponseCode.SUCCESS,
        ext: Ext = None,
        remark: str | None = None,
        body: Body = b"",
    ) -> None:
        """Answers a request; does nothing for a one-way one or on a closed connection.

        Args:
            command: A request from this connection that has not been answered yet.
            code: A `ResponseCode`.
            ext: Extension fields or a header record.
            remark: Text for people, where the code is not success.
            body: One buffer or several; they are kept, not copied, until written.
        """
        try:
            self.reply_raw(command, code, encode_ext(ext), body, remark)
        except LocalProtocolError as exc:
            logger.error("answer to request %d cannot be encoded: %s", command.code, exc)
            self.reply_raw(command, ResponseCode.SYSTEM_ERROR, b"", b"", str(exc))

    def reply_raw(
        self,
        command: Command,
        code: int,
        ext_json: bytes,
        body: Body = b"",
        remark: str | None = None,
    ) -> None:
        """Answers a request with extension fields that are JSON already, for the hot path.

        Args:
            ext_json: A JSON object whose values are texts; empty for no fields.

        Raises:
            LocalProtocolError: The answer exceeds 16 MiB.
        """
        if command.flag & _ONEWAY:
            return
        if command.answered:
            logger.error("request answered twice: code=%d peer=%s", command.code, self.peer)
            return
        if not self._closing:
            self._send(code, command.opaque, _RESPONSE, ext_json, body, remark)
        command.answered = True
        self._finished(command)

    def reply_error(
        self, command: Command, error: BaseException, ext: dict[str, object] | None = None
    ) -> None:
        """Answers with an error's code and text, and whether the request may have taken effect."""
        code, fields, remark = error_answer(error)
        self.reply(command, code, {**fields, **ext} if ext else fields, remark)

    def send_oneway(self, code: int, ext: Ext = None, body: Body = b"") -> None:
        """Sends a request that gets no answer; does nothing on a closed connection.

        Raises:
            LocalProtocolError: The request exceeds 16 MiB or cannot be encoded.
        """
        if not self._closing:
            self._send(code, self._next_opaque(), _ONEWAY, encode_ext(ext), body)

    async def request(
        self, code: int, ext: Ext = None, body: Body = b"", timeout_s: float = 3.0
    ) -> Command:
        """Sends a request and waits for its response, whatever its code.

        Raises:
            ConnectFailedError: The connection was closed before the request was written.
            ConnectionLostError: It was lost afterwards.
            RequestTimeoutError: No answer in time. The connection stays; a late answer is dropped.
            FlowControlError: Too many requests wait for answers. Nothing was sent.
            LocalProtocolError: The request exceeds 16 MiB or cannot be encoded.

        Concurrency:
            Safe to cancel; the request may have been sent.
        """
        opaque = self._begin()
        waiter: asyncio.Future[Command] = self._loop.create_future()
        self._waiters[opaque] = waiter
        try:
            self._send(code, opaque, 0, encode_ext(ext), body)
            timer = self._loop.call_later(timeout_s, self._expire, waiter, code, timeout_s)
            try:
                return await waiter
            finally:
                timer.cancel()
        finally:
            self._forget(opaque)

    def ask(self, code: int, ext: Ext, body: Body, callback: AnswerCallback) -> Asked:
        """Sends a request and calls back, in the same turn as the response is read.

        There is no timeout: whoever asks looks after that, and cancels.

        Raises:
            As `request`, where nothing was sent; then it does not call back.
        """
        opaque = self._begin()
        asked = self._waiters[opaque] = Asked(self, opaque, callback)
        try:
            self._send(code, opaque, 0, encode_ext(ext), body)
        except BaseException:
            self._forget(opaque)
            raise
        return asked

    def _begin(self) -> int:
        """Returns the number of a new request, whose waiter is to be noted."""
        if self._closing:
            raise ConnectFailedError(f"the connection to {self.peer} is closed")
        if len(self._waiters) >= self._limits.waiters_max:
            raise FlowControlError(f"{len(self._waiters)} requests to {self.peer} are under way")
        opaque = self._next_opaque()
        self._unflushed.add(opaque)
        return opaque

    def _forget(self, opaque: int) -> None:
        """Takes note that nobody waits for a request any more."""
        self._waiters.pop(opaque, None)
        self._unflushed.discard(opaque)

    def _ask_over(self, opaque: int) -> None:
        """Is told that a request made by `ask` is over."""
        self._forget(opaque)

    def close(self, reason: str = "") -> None:
        """Writes what has been accepted and closes.

        First only our direction ends; what the peer still sends is thrown away until it has closed
        its own. Closing at once would make the system answer unread bytes with a reset, and that
        takes from the peer what it has not read yet. A peer that does not follow is cut off after
        `close_timeout_s`.
        """
        transport = self._transport
        if self._closing or transport is None:
            return
        if reason:
            logger.info("connection closed: %s peer=%s", reason, self.peer)
        self._flush()
        if self._closing:
            return  # the flush has given up the peer
        self._closing = True
        if transport.is_closing():
            return
        transport.write_eof()
        if self._read_paused:
            self._read_paused = False
            transport.resume_reading()
        self._loop.call_later(self._limits.close_timeout_s, self._abort_unless_lost)

    def abort(self, reason: str) -> None:
        """Closes at once: for a peer that does not answer. What waits for it fails now."""
        if self._transport is not None and not self._lost.done():
            logger.info("connection given up: %s peer=%s", reason, self.peer)
            self._closing = True
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Waits until the connection is gone."""
        await asyncio.shield(self._lost)

    # --- what subclasses add ---

    def _on_request(self, command: Command) -> None:
        """Takes a request of the peer."""
        raise NotImplementedError

    def _take_run(self, frames: deque[Frame]) -> bool:
        """Takes requests from the front that need not become commands; whether it took any."""
        return False

    def _on_lost(self) -> None:
        """Is told once that the connection is gone."""

    def _finished(self, command: Command) -> None:
        """Is told that a request of the peer needs nothing more."""

    def _may_read(self) -> bool:
        """Whether more can be taken from the peer now.

        A client always reads: if both ends stopped reading until the other one reads, neither
        would ever go on. The server is the one that stops.
        """
        return True

    def _on_writable(self) -> None:
        """Is told that the write buffer has drained."""

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the transport."""
        self._transport = transport  # type: ignore[assignment]
        peer: Any = transport.get_extra_info("peername")
        if isinstance(peer, (tuple, list)) and len(peer) >= 2:
            self.peer_host, self.peer_port = str(peer[0]), int(peer[1])
        transport.set_write_buffer_limits(  # type: ignore[attr-defined]
            high=self._limits.write_high_water_bytes
        )

    def data_received(self, data: bytes) -> None:
        """Takes bytes from the peer."""
        self._heard = True
        if self._closing:
            return
        self._decoder.receive_data(data)
        self._pump()

    def pause_writing(self) -> None:
        """Notes that the peer does not take what we write."""
        self._write_paused = True
        self._update_reading()

    def resume_writing(self) -> None:
        """Notes that the peer has taken most of what we wrote."""
        self._write_paused = False
        self._heard = True
        self._update_reading()
        self._on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fails all who wait for an answer."""
        self._closing = True
        why = f": {exc}" if exc else ""
        for opaque, waiter in list(self._waiters.items()):
            if waiter.done():
                continue
            error: DLedgerError
            if opaque in self._unflushed:
                error = ConnectFailedError(f"connection to {self.peer} lost before sending{why}")
            else:
                error = ConnectionLostError(f"connection to {self.peer} lost{why}")
            waiter.set_exception(error)
        self._out.clear()
        self._out_bytes = 0
        self._frames.clear()
        if not self._lost.done():
            self._lost.set_result(None)
        self._on_lost()

    # --- reading ---

    def _pump(self) -> None:
        """Hands on all whole frames, as long as more requests can be taken."""
        decoder, frames = self._decoder, self._frames
        try:
            while self._may_read() and not self._closing and not self._read_stopped:
                if not frames:
                    frames.extend(decoder.next_frames(_FRAMES_AT_ONCE))
                    if not frames:
                        break
                if self._takes_runs and self._take_run(frames):
                    continue
                command = decode_command(frames.popleft())
                if command.flag & _RESPONSE:
                    waiter = self._waiters.get(command.opaque)
                    if waiter is not None and not waiter.done():
                        waiter.set_result(command)
                else:
                    self._on_request(command)
        except RemoteProtocolError as exc:
            self._reject(exc)
            return
        self._update_reading()

    def _reject(self, exc: RemoteProtocolError) -> None:
        logger.warning("connection closed: malformed frame: %s peer=%s", exc, self.peer)
        self.close()

    def _update_reading(self) -> None:
        transport = self._transport
        if transport is None or self._closing or self._read_stopped:
            return
        pause = not self._may_read()
        if pause == self._read_paused:
            return
        self._read_paused = pause
        if pause:
            transport.pause_reading()
        else:
            transport.resume_reading()
            # Frames that had come before the pause wait in the decoder; nothing else wakes them.
            self._loop.call_soon(self._pump)

    def _stop_reading(self) -> None:
        """Takes no more requests, for good; answers still go out."""
        if self._read_stopped or self._closing or self._transport is None:
            return
        self._read_stopped = True
        if not self._read_paused:
            self._read_paused = True
            self._transport.pause_reading()

    # --- writing ---

    def _send(
        self,
        code: int,
        opaque: int,
        flag: int,
        ext_json: bytes,
        body: Body,
        remark: str | None = None,
    ) -> None:
        single = isinstance(body, (bytes, bytearray, memoryview))
        size = len(body) if single else sum(map(len, body))  # type: ignore[arg-type]
        head = encode_head(code, opaque, flag, ext_json, size, remark)
        pieces: Sequence[Buffer] = ()
        if size:
            pieces = (body,) if single else body  # type: ignore[assignment]
        self._write(head, pieces, len(head) + size)

    def _write(self, head: Buffer, pieces: Sequence[Buffer], size: int) -> None:
        """Adds whole frames, of so many bytes in all, to what leaves at the end of the turn."""
        out = self._out
        if not out:
            self._loop.call_soon(self._flush)
        out.append(head)
        out.extend(pieces)
        self._out_bytes += size
        if self._out_bytes >= self._high_water_bytes:
            self._flush()  # a sender that never lets the loop run must still meet back-pressure

    def _flush(self) -> None:
        """Gives everything gathered to the transport in one call."""
        out = self._out
        transport = self._transport
        if not out or transport is None or self._closing:
            return
        self._out = []
        size = self._out_bytes
        self._out_bytes = 0
        self._unflushed.clear()
        if len(out) == 1:
            transport.write(out[0])
        elif size <= _JOIN_BYTES_MAX:
            transport.write(b"".join(out))
        else:
            transport.writelines(out)
        waiting = transport.get_write_buffer_size()
        if waiting > self._limits.write_bytes_max:
            logger.warning(
                "connection closed: the peer does not read %d waiting bytes peer=%s",
                waiting,
                self.peer,
            )
            self._closing = True
            transport.abort()
        elif self._read_paused:
            self._update_reading()

    # --- waiting ---

    def _next_opaque(self) -> int:
        opaque = self._opaque
        while opaque in self._waiters:  # only after four thousand million requests
            opaque = _following(opaque)
        self._opaque = _following(opaque)
        return opaque

    def _expire(self, waiter: asyncio.Future[Command], code: int, timeout_s: float) -> None:
        if not waiter.done():
            waiter.set_exception(
                RequestTimeoutError(
                    f"no answer from {self.peer} to request {code} within {timeout_s:g} s"
                )
            )

    def _abort_unless_lost(self) -> None:
        if not self._lost.done() and self._transport is not None:
            self._transport.abort()


def _following(opaque: int) -> int:
    """Returns the next request number; the wire has 32 bits with a sign."""
    return -(2**31) if opaque == 2**31 - 1 else opaque + 1
