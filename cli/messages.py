"""A message as programs get it: JSON."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dledger.message import ReceivedMessage


def message_to_json(message: ReceivedMessage) -> dict[str, object]:
    """Returns a message's facts; the body as `body`, or `body_base64` if it is not UTF-8."""
    content: dict[str, object] = {
        "message_id": message.message_id,
        "offset_message_id": message.offset_message_id,
        "topic": message.topic,
        "broker_name": message.broker_name,
        "queue_id": message.queue_id,
        "queue_offset": message.queue_offset,
        "physical_offset": message.physical_offset,
        "tags": message.tags,
        "keys": list(message.keys),
        "properties": message.properties,
        "born_timestamp_ms": message.born_timestamp_ms,
        "born_host": message.born_host,
        "store_timestamp_ms": message.store_timestamp_ms,
        "store_host": message.store_host,
        "reconsume_times": message.reconsume_times,
    }
    try:
        content["body"] = message.body.decode()
    except UnicodeDecodeError:
        content["body_base64"] = base64.b64encode(message.body).decode()
    return content


def json_line(message: ReceivedMessage) -> bytes:
    """Returns a message as one line of JSON, without the newline."""
    return json.dumps(message_to_json(message), ensure_ascii=False).encode()
