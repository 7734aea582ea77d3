"""Adds, removes and rebuilds the replicas of a broker group, with all that belongs to it.

A replica that is added, or rebuilt because its data is lost, is somebody new to its group: the
leader gives it an incarnation, its data directory is prepared for that, it catches up as a learner
and becomes a voter by itself. Whoever it was before is removed first and for good.

Every step can be repeated: a command that was interrupted is simply run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from broker.joining import Joining, move_aside, write_joining
from cli.cluster import LocalCluster
from cli.errors import CommandError, UsageError
from cli.layout import find_group
from dledger.client.sync_admin import Admin
from dledger.errors import BrokerResponseError, DLedgerError
from dledger.remoting.members import GroupConfiguration, GroupMember
from store.commit_log import LOCK_NAME
from store.files import OsFileSystem
from store.verify import open_error

CATCH_UP_S = 600.0
_POLL_S = 0.1

Say = Callable[[str], None]


class GroupMembers:
    """The replicas of one broker group. Blocking; one thread at a time."""

    def __init__(self, admin: Admin, group: str, say: Say = lambda _text: None) -> None:
        """Looks after one group.

        Args:
            admin: Started; the caller closes it.
            group: The broker group's name.
            say: Gets a line for every step.
        """
        self._admin = admin
        self.group = group
        self._say = say

    def configuration(self) -> GroupConfiguration:
        """Returns who belongs to the group, as its leader says."""
        return self._admin.replicas(self.group)

    def remove(self, replica_id: str) -> GroupConfiguration:
        """Removes a replica for good. A leader hands over first. Does nothing if it is gone.

        Raises:
            BrokerResponseError: The leader refused, e.g. since the majority would be lost.
        """
        if self.configuration().member(replica_id) is None:
            self._say(f"{replica_id} is not a replica of {self.group} (any more)")
            return self.configuration()
        try:
            changed = self._admin.remove_replica(self.group, replica_id)
        except BrokerResponseError:
            # An attempt whose answer was lost may have done it.
            changed = self.configuration()
            if changed.member(replica_id) is not None:
                raise
        self._say(f"{replica_id} was removed from {self.group} (entry {changed.index})")
        return changed

    def add(self, replica_id: str, address: str, raft_address: str) -> GroupConfiguration:
        """Makes a replica a learner of the group.

        Raises:
            BrokerResponseError: The leader refused.
        """
        before = self.configuration()
        try:
            changed = self._admin.add_replica(self.group, replica_id, address, raft_address)
        except BrokerResponseError:
            changed = self.configuration()
            member = changed.member(replica_id)
            if member is None or member.incarnation < before.next_incarnation:
                raise
        member = _require(changed, replica_id)
        self._say(
            f"{replica_id} joins {self.group} as a learner (incarnation {member.incarnation})"
        )
        return changed

    def join(
        self, replica_id: str, address: str, raft_address: str, directory: Path
    ) -> GroupMember:
        """Removes who had this name, adds it anew, and prepares its data directory.

        Args:
            replica_id: Of a process that does not run.
            address: Where clients will reach it.
            raft_address: Where the other replicas will reach it.
            directory: Its data directory. What lies there is moved aside, not deleted.

        Raises:
            BrokerResponseError: The leader refused; the directory is untouched.
            DataDirectoryLockedError: A process uses the directory; nothing was done.
        """
        check_unused(directory)
        if self.configuration().member(replica_id) is not None:
            self.remove(replica_id)
        configuration = self.add(replica_id, address, raft_address)
        member = _require(configuration, replica_id)
        aside = move_aside(directory, time.strftime("%Y%m%d-%H%M%S"))
        if aside is not None:
            self._say(f"its old data lies in {aside}")
        write_joining(directory, Joining(replica_id, member.incarnation, configuration))
        return member

    def wait_voter(
        self,
        member: GroupMember,
        timeout_s: float = CATCH_UP_S,
        why_down: Callable[[], str | None] = lambda: None,
    ) -> GroupConfiguration:
        """Waits until a replica has caught up and counts.

        Args:
            member: From `join`.
            timeout_s: For all of it.
            why_down: Says why its process does not run, None if it runs or nobody knows.

        Raises:
            CommandError: It did not in time (it stays a learner), it was removed, or it is down.
        """
        deadline = time.monotonic() + timeout_s
        told = ""
        while True:
            now: GroupMember | None = member
            try:
                configuration = self.configuration()
                now = configuration.member(member.id)
            except DLedgerError:
                pass  # there is no leader just now
            else:
                if now is None or now.incarnation != member.incarnation:
                    raise CommandError(f"{member.id} was removed from {self.group} meanwhile")
                if now.is_voter:
                    self._say(f"{member.id} has caught up and votes")
                    return configuration
            reason = why_down()
            if reason is not None:
                raise CommandError(reason)
            progress = self._progress(member)
            if progress != told:
                told = progress
                self._say(progress)
            if time.monotonic() >= deadline:
                raise CommandError(
                    f"{member.id} has not caught up within {timeout_s:g} s and stays a learner; it "
                    f"becomes a voter by itself once it has ({progress})"
                )
            time.sleep(_POLL_S)

    def _progress(self, member: GroupMember) -> str:
        try:
            own = self._admin.broker_runtime_info(member.address)
        except DLedgerError:
            return f"{member.id} does not answer yet at {member.address}"
        table: dict[str, Any] = {}
        leader = own.get("raftLeaderAddress", "")
        if leader and leader != member.address:
            try:
                table = self._admin.broker_runtime_info(leader)
            except DLedgerError:
                table = {}
        goal = table.get("commitIndex", "?")
        return f"{member.id} catches up: entry {own.get('durableIndex', '?')} of {goal}"


def check_unused(directory: Path) -> None:
    """Refuses if a process uses a data directory.

    Raises:
        DataDirectoryLockedError: One does.
    """
    if not (directory / "log").is_dir():
        return
    try:
        OsFileSystem().lock(directory / "log" / LOCK_NAME).release()
    except OSError as error:
        raise open_error(directory / "log", error) from error


def _require(configuration: GroupConfiguration, replica_id: str) -> GroupMember:
    member = configuration.member(replica_id)
    if member is None:
        raise UsageError(f"{replica_id} is not a replica of the group")
    return member


class LocalMembers:
    """The same for a cluster of `dledger up`: with its plan and its processes."""

    def __init__(self, cluster: LocalCluster, say: Say = lambda _text: None) -> None:
        """Looks after the replicas of a cluster on this machine.

        Args:
            cluster: It runs, with a majority of the group that is to be changed.
            say: Gets a line for every step.
        """
        self._cluster = cluster
        self._say = say

    def add(self, group: str, timeout_s: float = CATCH_UP_S) -> str:
        """Adds a replica to a group, starts it and waits until it votes; returns its name.

        Raises:
            UsageError: There is no such group.
            DLedgerError: Nobody leads the group, or the leader refused; nothing is left behind.
            CommandError: It did not catch up in time, or does not run.
        """
        find_group(self._cluster.layout, group)
        self._configuration(group)  # a group that nobody leads would leave a plan without a replica
        place = self._cluster.plan_replica(group)
        try:
            self._join(group, place.id, timeout_s)
        except BrokerResponseError:
            self._cluster.drop_replica(place.id)
            raise
        return place.id

    def remove(self, name: str) -> None:
        """Removes a replica from its group for good, and from the plan; ends its process.

        Its directory stays.

        Raises:
            BrokerResponseError: The leader refused; nothing has changed.
        """
        group = self._cluster.group_of(name)
        with Admin(nameserver=self._cluster.nameserver) as admin:
            GroupMembers(admin, group, self._say).remove(name)
        self._cluster.stop_one(name)
        self._cluster.drop_replica(name)
        self._say(f"its data lies in {self._cluster.directory / name}")

    def rebuild(self, name: str, timeout_s: float = CATCH_UP_S) -> None:
        """Gives a replica a new life with nothing, and waits until it votes.

        Its process is stopped if it runs, and started. What it had lies beside, in `old-<time>`.

        Raises:
            BrokerResponseError: The leader refused; the replica's data is untouched.
            CommandError: The others have no majority (nothing was done); or it did not catch up in
                time, or does not run.
        """
        group = self._cluster.group_of(name)
        self._check_majority_without(group, name)
        if self._cluster.stop_one(name):
            self._say(f"{name} stopped")
        self._join(group, name, timeout_s)

    def _configuration(self, group: str) -> GroupConfiguration:
        with Admin(nameserver=self._cluster.nameserver) as admin:
            return admin.replicas(group)

    def _check_majority_without(self, group: str, name: str) -> None:
        """Refuses to stop a replica that its group needs: there would be nobody to rebuild it."""
        voters = {member.id for member in self._configuration(group).members if member.is_voter}
        current = next(each for each in self._cluster.status().groups if each.name == group)
        answering = {replica.id for replica in current.replicas if replica.answers} & voters
        needed = len(voters) // 2 + 1
        if len(answering - {name}) < needed:
            others = ", ".join(sorted(answering - {name})) or "nobody"
            raise CommandError(
                f"{name} is needed: {needed} of {group}'s {len(voters)} voters make a majority, "
                f"and besides it only {others} answers; nothing was done"
            )

    def _join(self, group: str, name: str, timeout_s: float) -> None:
        cluster = self._cluster
        place = next(found for _, found in cluster.layout.replicas() if found.id == name)
        with Admin(nameserver=cluster.nameserver) as admin:
            members = GroupMembers(admin, group, self._say)
            directory = cluster.directory / name
            member = members.join(name, place.address, place.raft_address, directory)
            cluster.start_one(name)
            self._say(f"{name} started")
            members.wait_voter(member, timeout_s, lambda: cluster.failures().get(name))
