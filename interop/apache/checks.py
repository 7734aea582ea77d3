"""What our client must be able to do against any RocketMQ broker: one function a capability.

The same functions run against our own brokers (tests/integration/test_client_checks.py, with every
change) and against Apache RocketMQ (`python -m interop.apache.run`). A check ends in silence, or
raises `Different` to say what a broker does instead, or fails.
"""

from __future__ import annotations

from interop.apache import administration, consuming, delivery_times, sending

CHECKS = (
    sending.send_and_pull,
    sending.send_many,
    sending.send_batch,
    sending.send_oneway,
    sending.send_large,
    sending.send_to_new_topic,
    sending.unknown_topic_of_consumer,
    sending.shard_keys,
    sending.idempotence,
    delivery_times.delay_level,
    delivery_times.delay_any,
    delivery_times.recall,
    delivery_times.transactions,
    consuming.push_group,
    consuming.rebalance_at_once,
    consuming.simple_consumer,
    consuming.ordered,
    consuming.retry,
    consuming.dead_letters,
    consuming.dead_after_retries,
    consuming.tag_filter,
    consuming.sql_filter,
    consuming.broadcast,
    consuming.request_reply,
    administration.seek,
    administration.queries,
    administration.reset_offline,
    administration.move_one_queue,
    administration.reset_online,
    administration.administration,
    administration.order_topic,
    sending.crash_in_the_middle,
)
