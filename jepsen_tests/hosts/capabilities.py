"""What this machine lets the harness do, found by trying, each with the reason if not."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import uuid
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path

from jepsen_tests.hosts.shell import HarnessError, run_tool, tool_environment, try_tool

_CGROUP = Path("/sys/fs/cgroup")


class Backend(Enum):
    """How hosts are made."""

    NETNS_ROOT = "netns-root"
    NETNS_USER = "netns-user"
    PROXY = "proxy"


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """For each ability: empty if it is there, else why it is not.

    Attributes:
        netns: Network namespaces made right here.
        user_netns: Network namespaces inside a user namespace of our own.
        nft: A bridge table in a namespace.
        tbf: Rate limits on links.
        packet: Frames carried by a process of ours, for delay and disorder.
        loop: ext4 images mounted through loop devices, for power loss.
        bind: Private mounts, for a boot id of each machine's own and small file systems.
        strace: Failing and slow system calls.
        cgroup: CPU and memory limits.
        prlimit: Descriptor and file size limits.
        nested: We are inside a user namespace already.
        forced: The way to make hosts that was asked for.
    """

    netns: str
    user_netns: str
    nft: str
    tbf: str
    packet: str
    loop: str
    bind: str
    strace: str
    cgroup: str
    prlimit: str
    nested: bool = False
    forced: Backend | None = None

    @property
    def backend(self) -> Backend:
        """The way to make hosts that was asked for, or the best one here."""
        if self.forced is not None:
            return self.forced
        if not self.netns and not self.nft:
            return Backend.NETNS_USER if self.nested else Backend.NETNS_ROOT
        if not self.user_netns:
            return Backend.NETNS_USER
        return Backend.PROXY

    def to_json(self) -> dict[str, str]:
        """Returns a table for the report: `yes`, or why not."""
        others = ("nested", "forced")
        table = {name: text or "yes" for name, text in asdict(self).items() if name not in others}
        return {"backend": self.backend.value, **table}


def choose_hosts(able: Capabilities, wanted: str) -> Capabilities:
    """Returns the abilities with the way to make hosts that a person asked for.

    Args:
        able: What there is.
        wanted: `auto`, `netns` (right here, as root), `user` (in a user namespace), or `proxy`.

    Raises:
        HarnessError: It cannot be done here; the text says why.
    """
    match wanted:
        case "auto":
            return able
        case "proxy":
            return replace(able, forced=Backend.PROXY)
        case "netns":
            reason = able.netns or able.nft or ("in a user namespace" if able.nested else "")
            backend = Backend.NETNS_ROOT
        case "user":
            reason = "" if able.nested and not able.netns else able.user_netns
            backend = Backend.NETNS_USER
        case _:
            raise HarnessError(f"no such hosts: {wanted}; there are auto, netns, user and proxy")
    if reason:
        raise HarnessError(f"hosts of kind {wanted} cannot be made here: {reason}")
    return replace(able, forced=backend)


def probe_capabilities() -> Capabilities:
    """Tries everything; takes a few tenths of a second and leaves nothing behind."""
    if sys.platform != "linux":
        no = f"needs Linux, this is {sys.platform}"
        return Capabilities(
            netns=no, user_netns=no, nft=no, tbf=no, packet=no, loop=no, bind=no, strace=no,
            cgroup=no, prlimit=no,
        )  # fmt: skip
    name = f"dlprobe{uuid.uuid4().hex[:6]}"
    netns = try_tool(["ip", "netns", "add", name])
    nft = tbf = packet = "no network namespace"
    if netns is None:
        try:
            hook = "{ type filter hook forward priority 0; }"
            table = f"add table bridge dl\nadd chain bridge dl f {hook}"
            nft = try_tool(["ip", "netns", "exec", name, "nft", "-f", "-"], stdin=table) or ""
            tbf = _probe_tbf(name)
            packet = _probe_packet(name)
        finally:
            try_tool(["ip", "netns", "del", name])
    return Capabilities(
        netns=netns or "",
        user_netns=_probe_user_netns(),
        nft=nft,
        tbf=tbf,
        packet=packet,
        loop=_probe_loop(),
        bind=try_tool(["unshare", "-m", "true"]) or "",
        strace=_probe_strace(),
        cgroup=_probe_cgroup(),
        prlimit="" if _has("prlimit") else "prlimit is not installed",
        nested=_is_nested(),
    )


def _is_nested() -> bool:
    try:
        first, outside, count = Path("/proc/self/uid_map").read_text(encoding="ascii").split()[:3]
    except (OSError, ValueError):
        return False
    return (first, outside, count) != ("0", "0", "4294967295")


def _has(tool: str) -> bool:
    return shutil.which(tool, path=tool_environment()["PATH"]) is not None


def _probe_tbf(name: str) -> str:
    rate = ["rate", "1mbit", "burst", "4kb", "latency", "50ms"]
    return try_tool(["tc", "-n", name, "qdisc", "add", "dev", "lo", "root", "tbf", *rate]) or ""


def _probe_packet(name: str) -> str:
    inside = ["ip", "netns", "exec", name]
    reason = try_tool([*inside, "ethtool", "-K", "lo", "tso", "off"])
    script = "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW).bind(('lo', 3))"
    return reason or try_tool([*inside, sys.executable, "-S", "-c", script]) or ""


def _probe_user_netns() -> str:
    script = (
        "mount -t tmpfs tmpfs /run && mkdir -p /run/netns && ip netns add a && "
        "ip netns exec a nft 'add table bridge t; "
        "add chain bridge t f { type filter hook forward priority 0; }'"
    )
    return try_tool(["unshare", "-rnm", "sh", "-c", script]) or ""


def _probe_loop() -> str:
    if os.geteuid() != 0:
        return "needs root"
    for tool in ("mkfs.ext4", "losetup"):
        if not _has(tool):
            return f"{tool} is not installed"
    with tempfile.TemporaryDirectory(prefix="dlprobe") as directory:
        image, mount = Path(directory, "image"), Path(directory, "mount")
        mount.mkdir()
        with image.open("wb") as file:
            file.truncate(8 * 1024 * 1024)
        reason = try_tool(["mkfs.ext4", "-q", str(image)])
        reason = reason or try_tool(["mount", "-o", "loop", str(image), str(mount)])
        if reason is None:
            try_tool(["umount", str(mount)])
        return reason or ""


def _probe_strace() -> str:
    if not _has("strace"):
        return "strace is not installed"
    options = ["-qq", "-e", "trace=fsync", "-e", "inject=fsync:retval=0", "-o", "/dev/null"]
    return try_tool(["strace", *options, "true"]) or ""


def _probe_cgroup() -> str:
    group = _CGROUP / "cpu" / f"dlprobe{uuid.uuid4().hex[:6]}"
    try:
        group.mkdir()
    except OSError as error:
        return f"{group.parent}: {error.strerror}"
    try:
        (group / "cpu.cfs_quota_us").write_text("50000")
    except OSError as error:
        return f"{group.parent}: {error.strerror}"
    finally:
        group.rmdir()
    return ""


def tool_versions() -> dict[str, str]:
    """Returns the versions of what a run depends on, for its report."""
    found = {"python": sys.version.split()[0], "kernel": os.uname().release}
    for name, arguments in (("nft", ["nft", "--version"]), ("ip", ["ip", "-V"])):
        if _has(arguments[0]):
            found[name] = run_tool(arguments).strip()
    return found
