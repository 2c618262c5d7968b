#!/usr/bin/env bash
# Installs what building and testing nvmx needs from Debian's packages. Quick if all is there.
set -euo pipefail

# cmake and libclang build unicorn-engine (its bindings run bindgen); the rest builds C and fetches.
packages=(build-essential cmake pkg-config ca-certificates libclang-dev)

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "setup: installing ${missing[*]}" >&2
    if [ "$(id -u)" -ne 0 ]; then
        echo "setup: not root: run 'sudo apt-get install ${missing[*]}' and try again" >&2
        exit 2
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -y -q --no-install-recommends "${missing[@]}"
fi

if ! command -v cargo >/dev/null; then
    echo "setup: no cargo on PATH: install Rust 1.88 or newer with rustup (https://rustup.rs), then try again" >&2
    exit 2
fi
