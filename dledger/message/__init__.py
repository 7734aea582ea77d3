"""Messages: what a user sends, what a broker stores, and the identifiers both carry.

Everything here is pure: bytes in, values out. `records` holds the stored layout, `properties` the
properties string, `batch` the body of a batch send, `identity` hashes and ids, `compression` body
codecs, `names` the rules for topic and group names.
"""

from __future__ import annotations

from dledger.message.batch import (
    BatchElement,
    encode_batch,
    encode_batch_element,
    iter_batch,
)
from dledger.message.compression import compress_body, decompress_body
from dledger.message.identity import (
    UniqueKeyGenerator,
    crc31,
    format_host,
    java_hash,
    offset_message_id,
    offset_message_ids,
    pack_host,
    parse_offset_message_id,
    tag_hash,
    unpack_host,
)
from dledger.message.names import validate_group, validate_topic
from dledger.message.properties import (
    RESERVED_PROPERTIES,
    Property,
    decode_properties,
    encode_properties,
    get_property,
)
from dledger.message.recall import RecallHandle, decode_handle
from dledger.message.receipt import (
    NORMAL_MARK,
    ORDER_REVIVE_QUEUE,
    ReceiptHandle,
    decode_receipt,
    decode_start_offsets,
    encode_message_offsets,
    encode_order_counts,
    encode_start_offsets,
    retry_mark,
)
from dledger.message.records import (
    PHYSICAL_OFFSET_AT,
    QUEUE_OFFSET_AT,
    STORE_TIMESTAMP_AT,
    STORED_SIZE_AT,
    STORED_SIZE_MIN,
    SYS_FLAG_AT,
    Message,
    ReceivedMessage,
    Rejection,
    StoredTemplate,
    decode_stored,
    encode_stored,
    iter_stored,
    message_properties,
    stored_properties,
    stored_reconsume_times,
    stored_size,
    stored_store_timestamp,
    with_reconsume_times,
)
from dledger.message.runs import decode_run
from dledger.message.similar import SimilarBatch, StoredRun, similar_batch

__all__ = [
    "NORMAL_MARK",
    "ORDER_REVIVE_QUEUE",
    "PHYSICAL_OFFSET_AT",
    "QUEUE_OFFSET_AT",
    "RESERVED_PROPERTIES",
    "STORED_SIZE_AT",
    "STORED_SIZE_MIN",
    "STORE_TIMESTAMP_AT",
    "SYS_FLAG_AT",
    "BatchElement",
    "Message",
    "Property",
    "RecallHandle",
    "ReceiptHandle",
    "ReceivedMessage",
    "Rejection",
    "SimilarBatch",
    "StoredRun",
    "StoredTemplate",
    "UniqueKeyGenerator",
    "compress_body",
    "crc31",
    "decode_handle",
    "decode_properties",
    "decode_receipt",
    "decode_run",
    "decode_start_offsets",
    "decode_stored",
    "decompress_body",
    "encode_batch",
    "encode_batch_element",
    "encode_message_offsets",
    "encode_order_counts",
    "encode_properties",
    "encode_start_offsets",
    "encode_stored",
    "format_host",
    "get_property",
    "iter_batch",
    "iter_stored",
    "java_hash",
    "message_properties",
    "offset_message_id",
    "offset_message_ids",
    "pack_host",
    "parse_offset_message_id",
    "retry_mark",
    "similar_batch",
    "stored_properties",
    "stored_reconsume_times",
    "stored_size",
    "stored_store_timestamp",
    "tag_hash",
    "unpack_host",
    "validate_group",
    "validate_topic",
    "with_reconsume_times",
]
