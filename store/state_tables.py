"""What a replica's state store keeps in memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from dledger.model import GroupConfig, TopicConfig
from store import state_keys as keys
from store.producer_lanes import Lanes


class Sweep(NamedTuple):
    """How far the key index is rid of messages that are gone.

    A pass goes through all of it and keeps its goal to the end, even if retention has moved on
    meanwhile: beginning anew each time, it would never come to the end of a long index.

    Attributes:
        done: The index holds no message before this physical offset.
        goal: The pass under way removes those before this one; 0 if there is none.
        key: Where the pass goes on; empty for the beginning.
    """

    done: int = 0
    goal: int = 0
    key: bytes = b""

    def towards(self, retained_offset: int) -> Sweep:
        """Returns the pass under way, or the next one if there is something to remove."""
        if self.goal or self.done >= retained_offset:
            return self
        return Sweep(done=self.done, goal=retained_offset)


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
    sweep: Sweep = field(default_factory=Sweep)  # how far the key index is rid of what is gone
