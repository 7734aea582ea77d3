"""Rules for topic and group names."""

from __future__ import annotations

import re

from dledger.codes import (
    DEAD_LETTER_PREFIX,
    GROUP_LENGTH_MAX,
    RETRY_PREFIX,
    TOPIC_LENGTH_MAX,
    TOPIC_LENGTH_MAX_SYSTEM,
)
from dledger.errors import InvalidParameterError

_NAME = re.compile(r"[%|a-zA-Z0-9_-]+")


def validate_topic(name: str) -> None:
    """Checks a topic name.

    Raises:
        InvalidParameterError: Empty, too long, or with characters outside `%|a-zA-Z0-9_-`.
    """
    system = name.startswith((RETRY_PREFIX, DEAD_LETTER_PREFIX))
    _validate("topic", name, TOPIC_LENGTH_MAX_SYSTEM if system else TOPIC_LENGTH_MAX)


def validate_group(name: str) -> None:
    """Checks the name of a producer or consumer group.

    Raises:
        InvalidParameterError: Empty, too long, or with characters outside `%|a-zA-Z0-9_-`.
    """
    _validate("group", name, GROUP_LENGTH_MAX)


def _validate(what: str, name: str, length_max: int) -> None:
    if not name:
        raise InvalidParameterError(f"the {what} name is empty")
    if len(name) > length_max:
        raise InvalidParameterError(
            f"the {what} name of {len(name)} characters exceeds the limit of {length_max}"
        )
    if _NAME.fullmatch(name) is None:
        raise InvalidParameterError(
            f"the {what} name {name!r} may hold only letters, digits and the characters % | _ -"
        )
