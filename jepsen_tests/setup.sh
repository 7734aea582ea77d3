#!/bin/sh
# Installs what the harness uses to break networks and disks, where that is possible: as root, on
# Debian or a relative of it. Elsewhere it says what is missing and ends well: the harness finds out
# by itself what it can do, and reports what it cannot.
set -eu

missing=""
for pair in ip:iproute2 nft:nftables ethtool:ethtool strace:strace mkfs.ext4:e2fsprogs losetup:mount \
    unshare:util-linux nsenter:util-linux prlimit:util-linux; do
    tool=${pair%%:*}
    package=${pair#*:}
    if ! PATH="$PATH:/usr/sbin:/sbin" command -v "$tool" >/dev/null 2>&1; then
        case " $missing " in *" $package "*) ;; *) missing="$missing $package" ;; esac
    fi
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "jepsen: not installed:$missing (some faults cannot be done without)" >&2
    exit 0
fi
echo "jepsen: installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # a list of words
if ! { apt-get -qq update && apt-get -qq install -y --no-install-recommends $missing; } >&2; then
    echo "jepsen: could not install$missing (some faults cannot be done without)" >&2
fi
