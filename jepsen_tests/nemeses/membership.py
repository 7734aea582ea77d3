"""F13: replicas leave their group and join it anew while others break."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from cli.errors import CommandError
from cli.members import GroupMembers
from dledger.client.sync_admin import Admin
from dledger.errors import DLedgerError
from dledger.remoting.members import GroupMember
from jepsen_tests.hosts.shell import HarnessError
from jepsen_tests.nemeses.base import FOLLOWER, LEADER, Bench, Injection, Nemesis

T = TypeVar("T")

_JOIN_S = 30.0
_TRY_S = 8.0
_REMOVED, _DIED = "removed", "killed and given up"


class MembershipNemesis(Nemesis):
    """F13: the target is removed for good; some time later it joins as somebody new, with nothing.

    In turn it is removed while it runs (a leader hands over first), or after SIGKILL, as a machine
    that is lost; and every other time it is killed again while it catches up.

    Proof: it is not in the group's configuration, and then it votes in a later incarnation.
    """

    name = "F13"
    title = "membership: remove, add, replace"
    targets: ClassVar[tuple[str, ...]] = (FOLLOWER, LEADER)
    hold_s = (2.0, 3.5)

    def __init__(self) -> None:
        self._turn = 0

    def choose_target(self, bench: Bench) -> str:
        """Followers and leaders alternate, unless one is asked for."""
        return bench.target or self.targets[self._turn % len(self.targets)]

    def begin(self, bench: Bench) -> Injection:
        """Removes the target."""
        group, target = bench.group(), self.choose_target(bench)
        replica = bench.pick(group, target)[0]
        turn, self._turn = self._turn, self._turn + 1
        if len(bench.members(group)) < 3:
            raise HarnessError("a group of one has nobody to spare")
        how = (_REMOVED, _DIED)[turn // 2 % 2]
        before = _ask(bench, group, lambda members: members.configuration().member(replica))
        if before is None:
            raise HarnessError(f"{replica} is not a member of {group}")
        if how == _DIED:
            bench.cluster.kill(replica)
        try:
            after = _ask(bench, group, lambda members: members.remove(replica))
        except DLedgerError:
            bench.cluster.start(replica)
            raise
        if how == _REMOVED and bench.cluster.pid(replica) is not None:
            bench.cluster.kill(replica)
        details = {"incarnation": before.incarnation, "dies": turn % 2 == 1}
        injection = Injection(f"{target} {how}", [replica], group, details)
        injection.proof["removed"] = after.member(replica) is None
        return injection

    def end(self, bench: Bench, injection: Injection) -> None:
        """Lets it join with an empty disk, and waits until it votes."""
        replica, group = injection.targets[0], injection.group
        dies = injection.details.pop("dies")
        place = _place(bench, group, replica)
        directory = bench.cluster.volumes.directory(replica)
        began = time.monotonic()
        joined: GroupMember = _ask(
            bench,
            group,
            lambda members: members.join(
                replica, place["address"], place["raft_address"], directory
            ),
        )
        bench.cluster.start(replica)
        if dies:
            time.sleep(0.5)
            bench.cluster.kill(replica)
            bench.cluster.start(replica)
            injection.proof["killedWhileCatchingUp"] = True
        try:
            now = _ask(bench, group, lambda members: members.wait_voter(joined, _JOIN_S))
        except CommandError as error:
            raise HarnessError(str(error)) from error
        member = now.member(replica)
        injection.proof["incarnations"] = [
            injection.details.pop("incarnation"),
            None if member is None else member.incarnation,
        ]
        injection.proof["votesAfterSeconds"] = round(time.monotonic() - began, 2)
        old, new = injection.proof["incarnations"]
        votes = member is not None and member.is_voter
        injection.bit = injection.proof["removed"] and votes and new > old


def _ask(bench: Bench, group: str, action: Callable[[GroupMembers], T]) -> T:
    """Does something with a group's members from the control host; again while nobody leads."""
    nameserver = bench.cluster.addressing.control(bench.cluster.nameserver_host)

    def run() -> T:
        with Admin(nameserver=nameserver) as admin:
            return action(GroupMembers(admin, group))

    deadline = time.monotonic() + _TRY_S
    while True:
        try:
            return bench.network.call(run)
        except DLedgerError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.3)


def _place(bench: Bench, group: str, replica: str) -> dict[str, Any]:
    settings = bench.cluster.addressing.broker_settings(replica, bench.members(group))
    found: dict[str, Any] = next(r for r in settings["replicas"] if r["id"] == replica)
    return found
