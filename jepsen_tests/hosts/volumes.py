"""Where replicas keep their data: plain folders, or one disk image each that can lose power.

An image is an ext4 file system in a sparse file on a tmpfs, mounted through a loop device. Copying
the file while its writer is stopped is exactly what a disk holds when the power goes: all that was
synced, and nothing of what was not.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from functools import partial
from pathlib import Path
from typing import Protocol

from jepsen_tests.hosts.cleanup import CleanUp
from jepsen_tests.hosts.shell import HarnessError, run_tool, try_tool

IMAGE_BYTES = 768 * 1024 * 1024
_BALLAST = "ballast"
_BUSY_S = 2.0  # for what a killed process still holds
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class Volumes(Protocol):
    """The replicas' disks."""

    kind: str

    def directory(self, replica: str) -> Path:
        """Returns the folder of a replica's data."""
        ...

    def command_prefix(self, replica: str) -> tuple[str, ...]:
        """Returns what stands before the replica's command."""
        ...


class FolderVolumes:
    """Plain folders beside the configuration."""

    kind = "folder"

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def directory(self, replica: str) -> Path:
        """Returns the folder of a replica's data."""
        return self._directory / replica

    def command_prefix(self, replica: str) -> tuple[str, ...]:
        """Returns nothing: the process runs as it is."""
        return ()


class ImageVolumes:
    """An ext4 image for each replica, and a boot id of each machine's own."""

    kind = "image"

    def __init__(self, directory: Path, replicas: list[str], clean_up: CleanUp) -> None:
        """Makes, formats and mounts the images. Needs root.

        Raises:
            HarnessError: A step failed.
        """
        self._ram = directory
        directory.mkdir(parents=True, exist_ok=True)
        run_tool(["mount", "-t", "tmpfs", "tmpfs", str(directory)])
        clean_up.add("tmpfs", lambda: unmount(directory))
        for replica in replicas:
            image = self._image(replica)
            with image.open("wb") as file:
                file.truncate(IMAGE_BYTES)
            run_tool(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0", str(image)])
            self.mount_point(replica).mkdir()
            self._new_boot_id(replica)
            self._mount(replica)
            clean_up.add(f"image of {replica}", partial(self._unmount, replica))

    def mount_point(self, replica: str) -> Path:
        """Returns where a replica's image is mounted."""
        return self._ram / replica

    def directory(self, replica: str) -> Path:
        """Returns the folder of a replica's data."""
        return self.mount_point(replica) / "data"

    def command_prefix(self, replica: str) -> tuple[str, ...]:
        """Runs the process on a machine of its own, as far as the boot id goes.

        Mounts of the outside are taken over (slave propagation), so that none stays busy in there.
        """
        script = f'mount --bind "$0" {_BOOT_ID} && exec "$@"'
        boot = str(self._boot_file(replica))
        return ("unshare", "-m", "--propagation", "slave", "sh", "-c", script, boot)

    # --- power ------------------------------------------------------------------------------------

    def write_canaries(self, replica: str) -> tuple[Path, Path]:
        """Writes a synced and an unsynced file; returns their paths. For the proof of a power loss.

        The file system must not be busy: it is the unsynced file's data and name that are to be
        lost, so nothing may sync in between.
        """
        mark = uuid.uuid4().hex[:8]
        synced = self.mount_point(replica) / f"canary-{mark}-synced"
        unsynced = self.mount_point(replica) / f"canary-{mark}-unsynced"
        synced.write_text("synced")
        for path in (synced, self.mount_point(replica)):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        unsynced.write_text("unsynced" * 1000)
        return synced, unsynced

    def snapshot(self, replica: str) -> None:
        """Copies what the disk holds now. The replica's process must be stopped (SIGSTOP)."""
        crash = self._image(replica).with_suffix(".crash")
        run_tool(["cp", "--sparse=always", str(self._image(replica)), str(crash)])

    def lose_power(self, replica: str) -> None:
        """Puts the copy in the disk's place and gives the machine a new boot id.

        The replica's process must have ended.
        """
        image = self._image(replica)
        self._unmount(replica)
        image.with_suffix(".crash").replace(image)
        self._new_boot_id(replica)
        self._mount(replica)

    # --- space ------------------------------------------------------------------------------------

    def fill(self, replica: str, leave_bytes: int = 0) -> int:
        """Takes all free space but this much; returns how many bytes are free then."""
        facts = os.statvfs(self.mount_point(replica))
        size = facts.f_bavail * facts.f_frsize - leave_bytes
        if size > 0:
            path = self.mount_point(replica) / _BALLAST
            try_tool(["fallocate", "-l", str(size), str(path)])
        return self.free_bytes(replica)

    def free_bytes(self, replica: str) -> int:
        """Returns the free space of a replica's disk."""
        facts = os.statvfs(self.mount_point(replica))
        return facts.f_bavail * facts.f_frsize

    def drain(self, replica: str) -> None:
        """Gives the space back."""
        (self.mount_point(replica) / _BALLAST).unlink(missing_ok=True)

    # --- inside -----------------------------------------------------------------------------------

    def _image(self, replica: str) -> Path:
        return self._ram / f"{replica}.img"

    def _boot_file(self, replica: str) -> Path:
        return self._ram / f"{replica}.boot_id"

    def _new_boot_id(self, replica: str) -> None:
        self._boot_file(replica).write_text(f"{uuid.uuid4()}\n", encoding="ascii")

    def _mount(self, replica: str) -> None:
        image, point = str(self._image(replica)), str(self.mount_point(replica))
        # A long commit interval: what the program did not sync must not be synced by the way.
        run_tool(["mount", "-o", "loop,commit=120", image, point])

    def _unmount(self, replica: str) -> None:
        point = self.mount_point(replica)
        if os.path.ismount(point):
            unmount(point)


def unmount(point: Path) -> None:
    """Unmounts; something busy there gets a moment to end, then loses it without a goodbye.

    Raises:
        HarnessError: It is still mounted.
    """
    deadline = time.monotonic() + _BUSY_S
    while (reason := try_tool(["umount", str(point)])) is not None:
        if time.monotonic() >= deadline:
            if try_tool(["umount", "-l", str(point)]) is not None:
                raise HarnessError(reason)
            return
        time.sleep(0.05)


def remove_tree(path: Path) -> None:
    """Removes a folder that may not be there."""
    shutil.rmtree(path, ignore_errors=True)
