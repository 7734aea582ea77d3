"""What a replica's state store keeps in memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from dledger.model import GroupConfig, TopicConfig
from store import state_keys as keys
from store.producer_lanes import Lanes


@dataclass(slots=True)
class StateTables:
    """What a store keeps in memory. Owned by `StateStore`; replaced whole after a commit.

    `bounds` and `lanes` are the exception: they may be large, so a commit updates them in place.
    """

    applied_index: int = 0
    applied_term: int = 0
    next_topic_id: int = 1
    topics: dict[str, TopicConfig] = field(default_factory=dict)
    topic_names: dict[int, str] = field(default_factory=dict)
    groups: dict[str, GroupConfig] = field(default_factory=dict)
    bounds: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    lanes: Lanes = field(default_factory=OrderedDict)  # the longest unused first
    garbage: tuple[int, ...] = ()  # ids of deleted topics that have left pairs behind
    trimmed: tuple[tuple[int, int], ...] = ()  # queues that have chunks below their minimum
    digest: bytes = bytes(keys.DIGEST_BYTES)  # of everything that was applied, and its results
    checkpoints: tuple[tuple[int, bytes], ...] = ()  # (log index, digest), the newest last
    retained_offset: int = 0  # messages before this physical offset are gone
    swept_offset: int = 0  # the key index holds none before this one
    sweep_key: bytes = b""  # where sweeping it goes on
