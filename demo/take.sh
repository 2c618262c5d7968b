#!/usr/bin/env bash
# Takes the snapshots in demo/snapshots anew: on real KVM in the lab, kernel by kernel. For each instant: a snapshot of
# the guest there, then real KVM restores that file on a fresh machine and runs to the guest's end.
# usage: demo/take.sh [6.1] [6.12]        (default: both)
set -euo pipefail
cd "$(dirname "$0")/.."
kernels=("${@:-6.1}")
[ $# -gt 0 ] || kernels=(6.1 6.12)

if [ -z "${NVMX_DEMO_KERNEL:-}" ]; then
    lab/setup.sh "${kernels[@]}"
    cargo build -q -p nvmx -p nvmx-demo
    export PATH="${CARGO_TARGET_DIR:-$PWD/target}/debug:$PATH"
    for kernel in "${kernels[@]}"; do
        NVMX_DEMO_KERNEL=$kernel nvmx lab run --kernel "$kernel" -- "$0"
    done
    exit
fi

# In the lab. The commands stay in the snapshots: paths are relative to the repository.
kernel=$NVMX_DEMO_KERNEL
mkdir -p "demo/snapshots/$kernel"
take() { # NAME GUEST WHERE ITERATIONS
    local at=demo/snapshots/$kernel/$1 began=$SECONDS
    rm -f "$at".*
    nvmx snapshot "example:$2" --iterations "$4" --backend "lab:$kernel" --at "$3" --out "$at.ron"
    nvmx replay "$at.ron" --backend "lab:$kernel" --timeout 120 --out "$at.end.ron" --json >"$at.json"
    nvmx-demo record "$at.json" >"$at.seen.json"
    rm "$at.json"
    echo "$kernel $1: $(grep -o '"nested_events": [0-9]*' "$at.seen.json") in $((SECONDS - began)) s"
}

# As many iterations as make a thousand nested events or more.
take l1            roundtrip checkpoint:1           1
take l2            exits     checkpoint-id:0xff0000 70
take l2-shadow     shadow    checkpoint-id:0xfd0000 80
take l2-timer      timers    checkpoint-id:0xfc0000 45
take l2-deadline   apic      checkpoint-id:0xfe0000 80
take entry-pending roundtrip run-pending            10
