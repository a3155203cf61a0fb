#!/usr/bin/env bash
# cluster/local.sh up|down|status
# A Ray cluster on this machine, a head without CPUs and two workers, usable only with its token: the
# token is 256 bits in a 0600 file; dashboard and client listen on loopback. `down` ends only what `up` started.
# UDL_WORKERS, UDL_CPUS: number of workers, cores of each; UDL_PYTHON: another Python.
set -euo pipefail
umask 077

state="${XDG_STATE_HOME:-$HOME/.local/state}/udl-dist/cluster"
python="${UDL_PYTHON:-python3}"
if [[ -z "${UDL_PYTHON:-}${VIRTUAL_ENV:-}" && -x .venv/bin/python ]]; then python="$PWD/.venv/bin/python"; fi
workers="${UDL_WORKERS:-2}" cpus="${UDL_CPUS:-1}"
node=127.0.0.2 # also loopback; Ray would replace 127.0.0.1 by the address of this machine in the network

say() { printf '%s\n' "$*"; }

fail() {
    printf 'local.sh: %s\n' "$*" >&2
    exit 5
}

# Processes with the mark of this cluster in their environment: those started here and their children.
ours() {
    grep -laF "UDL_LOCAL_CLUSTER=$(cat "$state/mark")" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 || true
}

running() { [[ -e "$state/mark" && -n "$(ours)" ]]; }

ports() {
    "$python" -P - "$1" <<'PYTHON'
import socket, sys
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(each.getsockname()[1] for each in held))
PYTHON
}

make_folder() {
    mkdir -p "$state"
    chmod 700 "$state"
    rm -f "$state/token"
    "$python" -P -c 'import secrets; print(secrets.token_hex(32), end="")' >"$state/token" # not as an argument: argv is public
    chmod 600 "$state/token"
    "$python" -P -c 'import uuid; print(uuid.uuid4().hex, end="")' >"$state/mark"
    mktemp -d /tmp/udl-ray-XXXXXX >"$state/temporary" # short: paths of sockets are limited to 107 bytes
}

ray_start() {
    # No terminal and its own session, so that Ctrl-C here does not reach it.
    setsid "$python" -P -m ray.scripts.scripts start --node-ip-address="$node" --object-store-memory=100000000 \
        --disable-usage-stats "$@" </dev/null >>"$state/log" 2>&1 || {
        tail -n 5 "$state/log" >&2
        down >/dev/null
        fail "Ray did not start; all it said is in $state/log"
    }
}

up() {
    if running; then
        say "is up already: $(cat "$state/address")"
        return
    fi
    "$python" -P -c 'import ray, aiohttp' 2>/dev/null || fail "no Ray with a dashboard for $python: pip install 'udl-dist[cluster]', or set UDL_PYTHON"
    make_folder
    : >"$state/log"
    local port worker
    read -r -a port <<<"$(ports $((4 + workers)))" # free ports: another Ray may use the default ones
    unset RAY_AUTH_TOKEN RAY_ADDRESS RAY_API_SERVER_ADDRESS
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$state/token" RAY_worker_niceness=0
    # Ray serves Prometheus metrics on all interfaces and without a token: switched off.
    export RAY_enable_metrics_collection=0 DASHBOARD_METRIC_PORT=-1 AUTOSCALER_METRIC_PORT=-1
    UDL_LOCAL_CLUSTER="$(cat "$state/mark")" && export UDL_LOCAL_CLUSTER
    PATH="$("$python" -P -c 'import sys; print(sys.prefix)')/bin:$PATH" && export PATH # jobs run `python`: this one
    say "starting a head and $workers workers"
    ray_start --head --port="${port[0]}" --num-cpus=0 --num-gpus=0 --temp-dir="$(cat "$state/temporary")" \
        --include-dashboard=true --dashboard-host=127.0.0.1 --dashboard-port="${port[1]}" \
        --ray-client-server-port="${port[2]}" --dashboard-agent-listen-port="${port[3]}"
    for ((worker = 0; worker < workers; worker++)); do
        # Its own temporary folder: nodes that share one delete files of each other's running jobs.
        ray_start --address="$node:${port[0]}" --num-cpus="$cpus" --temp-dir="$(cat "$state/temporary")/$worker" \
            --dashboard-agent-listen-port="${port[4 + worker]}"
    done
    printf 'http://127.0.0.1:%s' "${port[1]}" >"$state/address"
    say "up: $(cat "$state/address"), $((workers * cpus)) CPU cores; the token is in $state/token"
    say "next: udl submit jobs/vae_digits.toml --follow"
}

down() {
    [[ -e "$state/mark" ]] || { say "is not up"; return; }
    local signal process
    for signal in TERM KILL; do
        for process in $(ours); do kill "-$signal" "$process" 2>/dev/null || true; done
        for ((tries = 0; tries < 50; tries++)); do
            [[ -n "$(ours)" ]] || break
            sleep 0.1
        done
    done
    [[ -z "$(ours)" ]] || fail "these did not end: $(ours | tr '\n' ' ')"
    local temporary
    temporary="$(cat "$state/temporary")"
    if [[ "$temporary" == /tmp/udl-ray-* ]]; then rm -rf "$temporary"; fi
    rm -f "$state"/{mark,token,address,temporary,log}
    say "down: nothing is left"
}

status() {
    running || { say "is not up"; exit 1; }
    say "is up: $(cat "$state/address"), $(ours | wc -l) processes; the token is in $state/token"
}

case "${1:-}" in
up | down | status) "$1" ;;
*) printf 'local.sh: unexpected argument %s: cluster/local.sh up|down|status\n' "'${1:-}'" >&2 && exit 2 ;;
esac
