#!/bin/sh
# Gets what the peers need, as far as that is possible here: servers from Debian (as root), a newer
# NATS server through Go, Apache RocketMQ through Maven, and Python clients into build/peers/venv.
# What cannot be had is said and left out: run.py finds out by itself which peers it can run.
# A second run does only what is missing. Leaves no service running, nor started at the next boot.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
place=$root/build/peers
NATS_VERSION=${NATS_VERSION:-v2.12.15}
ROCKETMQ_VERSION=$(sed -n 's|.*<rocketmq.version>\(.*\)</rocketmq.version>.*|\1|p' "$here/pom.xml")
PYTHON=${PYTHON:-python3}

say() { echo "peers: $*" >&2; }
have() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1; }

mkdir -p "$place/bin"

# --- servers from Debian ---------------------------------------------------------------------
packages=""
had_erlang=true
have epmd || had_erlang=false
have rabbitmq-server || packages="$packages rabbitmq-server"
have redis-server || packages="$packages redis-server"
# Not any that Go has put somewhere: one of the peers is the distribution's.
[ -x /usr/sbin/nats-server ] || [ -x /usr/bin/nats-server ] || packages="$packages nats-server"
if [ -n "$packages" ]; then
    if [ "$(id -u)" != 0 ] || ! have apt-get; then
        say "not installed, which needs apt-get as root:$packages"
    else
        say "installing$packages"
        export DEBIAN_FRONTEND=noninteractive
        # Packages start their services unless this file forbids it; it is ours only if it is new.
        policy=/usr/sbin/policy-rc.d
        if [ ! -e $policy ]; then
            trap 'rm -f /usr/sbin/policy-rc.d' EXIT
            printf '#!/bin/sh\nexit 101\n' >$policy
            chmod +x $policy
        fi
        # shellcheck disable=SC2086 # a list of words
        if { apt-get -qq update && apt-get -qq install -y --no-install-recommends $packages; } >&2
        then
            # Only what this run has installed: a service that was there is somebody's own.
            case "$packages" in *rabbitmq*) $had_erlang || packages="$packages epmd.socket epmd" ;; esac
            for service in $packages; do
                ! have systemctl || systemctl disable --now "$service" >/dev/null 2>&1 ||
                    systemctl disable "$service" >/dev/null 2>&1 || true
            done
        else
            say "could not install$packages"
        fi
    fi
fi

# --- a newer NATS server -----------------------------------------------------------------------
if [ ! -x "$place/bin/nats-server" ]; then
    if have go; then
        say "building nats-server $NATS_VERSION"
        GOBIN=$place/bin go install "github.com/nats-io/nats-server/v2@$NATS_VERSION" >&2 ||
            say "could not build nats-server $NATS_VERSION"
    else
        say "no nats-server $NATS_VERSION: there is no go"
    fi
fi

# --- Apache RocketMQ -----------------------------------------------------------------------------
jars=$place/rocketmq-$ROCKETMQ_VERSION
if [ ! -d "$jars" ]; then
    if have mvn && have java; then
        say "getting Apache RocketMQ $ROCKETMQ_VERSION"
        rm -rf "$jars.new"
        if mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies \
            "-DoutputDirectory=$jars.new" >&2
        then
            mv "$jars.new" "$jars"
        else
            say "could not get Apache RocketMQ $ROCKETMQ_VERSION"
        fi
    else
        say "no Apache RocketMQ: needs java and mvn"
    fi
fi

# --- Python clients, and dledger itself --------------------------------------------------------------
stamp=$place/.installed
if [ ! -e "$stamp" ] || [ "$here/requirements.txt" -nt "$stamp" ] ||
    [ "$root/pyproject.toml" -nt "$stamp" ]; then
    say "installing Python clients into $place/venv"
    [ -x "$place/venv/bin/python" ] || "$PYTHON" -m venv "$place/venv"
    "$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        -e "$root" -r "$here/requirements.txt"
    touch "$stamp"
fi
