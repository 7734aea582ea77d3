"""The handle with which a waiting message is recalled: base64 of five words.

v1 <topic> <broker name> <delivery time in ms> <unique key>
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import NamedTuple

from dledger.errors import InvalidParameterError

_VERSION = "v1"
_NUMBER = re.compile(r"-?[0-9]{1,18}")


class RecallHandle(NamedTuple):
    """What names a waiting message towards clients."""

    topic: str
    broker_name: str
    deliver_ms: int
    unique_key: str

    def encode(self) -> str:
        """Returns the handle as clients get it."""
        words = (_VERSION, self.topic, self.broker_name, str(self.deliver_ms), self.unique_key)
        return base64.urlsafe_b64encode(" ".join(words).encode()).decode()


def decode_handle(text: str) -> RecallHandle:
    """Returns a handle as it was given out.

    Raises:
        InvalidParameterError: It is not one of version 1.
    """
    try:
        padded = text + "=" * (-len(text) % 4)
        raw = base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True)
        words = raw.decode().split(" ")
    except (ValueError, binascii.Error):
        words = []
    if len(words) != 5 or words[0] != _VERSION or not _NUMBER.fullmatch(words[3]):
        raise InvalidParameterError("recall failed, handle is invalid")
    return RecallHandle(words[1], words[2], int(words[3]), words[4])
