"""Commands: the requests and responses that frames carry.

Both header encodings are read. We always write JSON, in the order of keys of the Java
implementation, with every extension field as a text.
"""

from __future__ import annotations

import functools
import re
import struct
import typing
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from dledger.codes import LANGUAGE, PROTOCOL_VERSION, CommandFlag
from dledger.errors import InvalidParameterError, LocalProtocolError, RemoteProtocolError
from dledger.remoting.frames import (
    HEADER_BINARY,
    HEADER_JSON,
    Frame,
    encode_frame,
    frame_prefix,
)
from dledger.remoting.headers import Int32, to_ext

T = TypeVar("T", bound=msgspec.Struct)

Ext = Mapping[str, object] | msgspec.Struct | None

LANGUAGES = (
    "JAVA",
    "CPP",
    "DOTNET",
    "PYTHON",
    "DELPHI",
    "ERLANG",
    "RUBY",
    "OTHER",
    "HTTP",
    "GO",
    "PHP",
    "OMS",
    "RUST",
    "NODE_JS",
)
_LANGUAGE_UNKNOWN = "OTHER"

_RESPONSE = int(CommandFlag.RESPONSE)
_ONEWAY = int(CommandFlag.ONEWAY)

# Code, language, version, opaque and flag of a binary header.
_BINARY_HEAD = struct.Struct(">hBhii")
_I32 = struct.Struct(">i")
_I16 = struct.Struct(">h")
# A binary header has 16 bits for the code; the codes of POP need more and arrive cut off.
_WIDE_CODES = MappingProxyType({code & 0xFFFF: code for code in (*range(200050, 200057), 200151)})

_NO_FIELDS = msgspec.Raw(b"{}")
_DIGITS = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)
_TRUE_TEXTS = frozenset({"true", "1", "yes"})


class Command(msgspec.Struct):
    """A decoded request or response.

    `answered` belongs to the connection that the command came from. `body` is the frame's own copy.
    """

    code: int
    opaque: int
    flag: int = 0
    version: int = 0
    language: str = _LANGUAGE_UNKNOWN
    remark: str = ""
    body: bytes = b""
    raw_ext: msgspec.Raw | None = _NO_FIELDS  # JSON of the extension fields, not looked at yet
    ext_cache: dict[str, str] | None = None
    answered: bool = False

    @property
    def is_response(self) -> bool:
        """Whether this answers a request of ours."""
        return self.flag & _RESPONSE != 0

    @property
    def is_oneway(self) -> bool:
        """Whether the sender expects no answer and must not get one."""
        return self.flag & _ONEWAY != 0

    @property
    def ext(self) -> dict[str, str]:
        """The extension fields as texts; numbers in decimal, booleans `true`/`false`, no nulls.

        Raises:
            InvalidParameterError: The fields are not a JSON object.
        """
        ext = self.ext_cache
        if ext is None:
            ext = self.ext_cache = _decode_ext(self.raw_ext)
        return ext

    def header(self, type_: type[T]) -> T:
        """Returns the extension fields as a typed header.

        Texts, numbers and booleans are taken for one another, as the clients of other languages
        need; fields that the type does not know are ignored.

        Raises:
            InvalidParameterError: A field is missing, of the wrong kind or out of range; the text
                names it.
        """
        raw = self.raw_ext
        if raw is not None:
            try:
                header: T = _header_decoder(type_).decode(raw)
                return header
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                pass  # once more, with the texts looked at one by one
        return _convert_header(self.ext, type_)


class JsonHeader(msgspec.Struct):
    """What every JSON header has beside its extension fields."""

    code: Int32 = 0
    flag: Int32 = 0
    language: str | None = None
    opaque: Int32 = 0
    remark: str | None = None
    version: int = 0


class _AnyHeader(JsonHeader):
    ext_fields: msgspec.Raw = msgspec.field(name="extFields", default=_NO_FIELDS)


# As `_json_header` writes it, with our language and version and no remark.
_HOT_HEADER = (
    b'{"code":%%d,"extFields":%%b,"flag":%%d,"language":"%b","opaque":%%d'
    b',"serializeTypeCurrentRPC":"JSON","version":%d}'
) % (LANGUAGE.encode(), PROTOCOL_VERSION)

_JSON_HEADER = msgspec.json.Decoder(_AnyHeader, strict=False)


def decode_command(frame: Frame) -> Command:
    """Decodes the header of a frame in either encoding.

    Raises:
        RemoteProtocolError: The header is not what its type says.
    """
    if frame.header_type == HEADER_BINARY:
        return _decode_binary(frame)
    if frame.header_type != HEADER_JSON:
        raise RemoteProtocolError(f"unknown header type {frame.header_type}")
    try:
        header = _JSON_HEADER.decode(frame.header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise RemoteProtocolError(f"header is not a command: {exc}") from exc
    return Command(
        header.code,
        header.opaque,
        header.flag,
        header.version,
        header.language or _LANGUAGE_UNKNOWN,
        header.remark or "",
        frame.body,
        header.ext_fields,
    )


def encode_request(
    code: int,
    opaque: int,
    ext: Ext = None,
    body: bytes = b"",
    *,
    oneway: bool = False,
    language: str = LANGUAGE,
    version: int = PROTOCOL_VERSION,
) -> bytes:
    """Returns the frame of a request.

    Args:
        ext: Extension fields, or a header record; `None` values are left out.
        oneway: No answer is expected.

    Raises:
        LocalProtocolError: The frame would be too large, or a field cannot be encoded.
    """
    flag = _ONEWAY if oneway else 0
    header = _json_header(code, opaque, flag, encode_ext(ext), None, language, version)
    return encode_frame(header, body)


def encode_response(
    code: int, opaque: int, ext: Ext = None, remark: str | None = None, body: bytes = b""
) -> bytes:
    """Returns the frame of a response.

    Raises:
        LocalProtocolError: The frame would be too large, or a field cannot be encoded.
    """
    return encode_frame(_json_header(code, opaque, _RESPONSE, encode_ext(ext), remark), body)


def encode_head(
    code: int,
    opaque: int,
    flag: int,
    ext_json: bytes,
    body_length: int,
    remark: str | None = None,
) -> bytes:
    """Returns all of a frame before its body, for senders that keep the body where it lies.

    Args:
        ext_json: Extension fields from `encode_ext`, or written by hand: a JSON object whose
            values are texts. Empty for none.
        body_length: Bytes that will follow.

    Raises:
        LocalProtocolError: The frame would be too large.
    """
    if ext_json and not remark:  # what the broker answers tens of thousands of times a second
        header = _HOT_HEADER % (code, ext_json, flag, opaque)
    else:
        header = _json_header(code, opaque, flag, ext_json, remark)
    return frame_prefix(len(header), body_length) + header


def encode_ext(ext: Ext) -> bytes:
    """Returns extension fields as a JSON object of texts; empty bytes for no fields.

    Raises:
        LocalProtocolError: A name or value cannot be encoded.
    """
    if not ext:
        return b""
    if isinstance(ext, msgspec.Struct):
        fields = to_ext(ext)
    else:
        fields = {
            name: value if type(value) is str else _render(value)
            for name, value in ext.items()
            if value is not None
        }
    try:
        return msgspec.json.encode(fields)
    except (UnicodeEncodeError, TypeError, msgspec.EncodeError) as exc:
        raise LocalProtocolError(f"extension fields cannot be encoded: {exc}") from exc


def encode_binary(
    code: int,
    opaque: int,
    ext: Ext = None,
    body: bytes = b"",
    *,
    flag: int = 0,
    remark: str = "",
    language: str = LANGUAGE,
    version: int = PROTOCOL_VERSION,
) -> bytes:
    """Returns a frame with a binary header, as some clients send it. We never do ourselves."""
    pieces = [
        _BINARY_HEAD.pack(
            ((code & 0xFFFF) ^ 0x8000) - 0x8000, LANGUAGES.index(language), version, opaque, flag
        )
    ]
    text = remark.encode()
    pieces += (_I32.pack(len(text)), text)
    fields = msgspec.json.decode(encode_ext(ext) or b"{}", type=dict[str, str])
    table = b"".join(
        b"".join((_I16.pack(len(key)), key, _I32.pack(len(item)), item))
        for key, item in ((key.encode(), item.encode()) for key, item in fields.items())
    )
    pieces += (_I32.pack(len(table)), table)
    return encode_frame(b"".join(pieces), body, header_type=HEADER_BINARY)


def _json_header(
    code: int,
    opaque: int,
    flag: int,
    ext_json: bytes,
    remark: str | None,
    language: str = LANGUAGE,
    version: int = PROTOCOL_VERSION,
) -> bytes:
    ext_part = b',"extFields":' + ext_json if ext_json else b""
    remark_part = b""
    if remark:
        try:
            remark_part = b',"remark":' + msgspec.json.encode(remark)
        except UnicodeEncodeError:
            remark_part = b',"remark":' + msgspec.json.encode(ascii(remark))
    return (
        b'{"code":%d%b,"flag":%d,"language":"%b","opaque":%d%b'
        b',"serializeTypeCurrentRPC":"JSON","version":%d}'
    ) % (code, ext_part, flag, language.encode(), opaque, remark_part, version)


def _render(value: object) -> str:
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, Enum):
        return str(value.value)
    return str(value)


def _decode_ext(raw: msgspec.Raw | None) -> dict[str, str]:
    if raw is None:
        return {}
    try:
        fields = msgspec.json.decode(raw, type=dict[str, Any] | None) or {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidParameterError(f"extension fields are not a JSON object: {exc}") from exc
    return {
        name: value if type(value) is str else _text(value)
        for name, value in fields.items()
        if value is not None
    }


def _text(value: object) -> str:
    if isinstance(value, (dict, list)):
        return msgspec.json.encode(value).decode()
    return _render(value)


def _decode_binary(frame: Frame) -> Command:
    data = frame.header
    try:
        code, language, version, opaque, flag = _BINARY_HEAD.unpack_from(data)
        remark, at = _sized_text(data, _BINARY_HEAD.size, _I32)
        (table_length,) = _I32.unpack_from(data, at)
        at += _I32.size
        if table_length < 0 or at + table_length > len(data):
            raise ValueError(f"extension fields of {table_length} bytes")
        stop = at + table_length
        ext: dict[str, str] = {}
        while at < stop:
            key, at = _sized_text(data, at, _I16)
            value, at = _sized_text(data, at, _I32)
            if value:  # what the original reads as null
                ext[key] = value
        if at != stop:
            raise ValueError("the last extension field is torn")
    except (struct.error, ValueError) as exc:
        raise RemoteProtocolError(f"binary header is damaged: {exc}") from exc
    if not flag & _RESPONSE:
        code = _WIDE_CODES.get(code & 0xFFFF, code)
    return Command(
        code,
        opaque,
        flag,
        version,
        LANGUAGES[language] if language < len(LANGUAGES) else _LANGUAGE_UNKNOWN,
        remark,
        frame.body,
        None,
        ext,
    )


def _sized_text(data: bytes, at: int, length_struct: struct.Struct) -> tuple[str, int]:
    """Returns a length-prefixed text and where it ends; `ValueError` if it does not fit."""
    (length,) = length_struct.unpack_from(data, at)
    start = at + length_struct.size
    stop = start + length
    if length < 0 or stop > len(data):
        raise ValueError(f"a text of {length} bytes at byte {at}")
    return data[start:stop].decode(), stop


@functools.lru_cache(maxsize=512)
def _header_decoder(type_: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(type_, strict=False)


def _convert_header(ext: Mapping[str, str], type_: type[T]) -> T:
    """Converts texts one by one: slower, but takes all that other clients write."""
    values: dict[str, object] = {}
    for name, kind in _field_kinds(type_):
        text = ext.get(name)
        if text is None:
            continue
        if kind is str:
            values[name] = text
            continue
        text = text.strip().lower()
        if not text or text == "null":
            continue
        if kind is bool:
            values[name] = text in _TRUE_TEXTS
        elif _DIGITS.fullmatch(text):
            values[name] = int(text)
        else:
            values[name] = {"true": 1, "false": 0}.get(text, text)
    try:
        return msgspec.convert(values, type_, strict=False)
    except msgspec.ValidationError as exc:
        raise InvalidParameterError(f"request header: {exc}") from exc


@functools.lru_cache(maxsize=512)
def _field_kinds(type_: type[msgspec.Struct]) -> tuple[tuple[str, type], ...]:
    return tuple((info.encode_name, _kind(info.type)) for info in msgspec.structs.fields(type_))


def _kind(annotation: Any) -> type:
    """Returns the plain type inside `Annotated` and `| None`."""
    while not isinstance(annotation, type):
        annotation = typing.get_args(annotation)[0]
    return annotation
