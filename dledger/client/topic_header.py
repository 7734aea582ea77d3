"""How a topic's settings are asked for."""

from __future__ import annotations

from dledger.model import TopicConfig
from dledger.remoting.headers import CreateTopicHeader


def topic_header(config: TopicConfig, attributes: str = "") -> CreateTopicHeader:
    """Returns the request's header that gives a topic these settings.

    Args:
        config: The settings; its attributes are left alone.
        attributes: Changes of them, `+name=value` or `-name`, joined by commas.
    """
    return CreateTopicHeader(
        topic=config.name,
        read_queue_count=config.read_queue_count,
        write_queue_count=config.write_queue_count,
        permission=config.permission,
        filter_type=config.filter_type,
        topic_flags=config.topic_flags,
        order=config.order,
        attributes=attributes,
    )
