#!/usr/bin/env bash
# Installs what building and testing nvmx needs from Debian's packages. Quick if all is there.
set -euo pipefail

# cmake and libclang build unicorn-engine (its bindings run bindgen); the rest builds C and fetches. QEMU is a
# program that the tests run on the shim.
packages=(build-essential cmake pkg-config ca-certificates libclang-dev qemu-system-x86 seabios)
# The least Rust that builds it: `rust-version` in Cargo.toml.
rust=1.88

say() { printf 'setup: %s\n' "$*" >&2; }
updated=
install() {
    say "installing $*"
    local run=(env DEBIAN_FRONTEND=noninteractive)
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || { say "not root: run 'sudo apt-get install $*' and try again"; exit 2; }
        run=(sudo -n "${run[@]}")
    fi
    [ -n "$updated" ] || "${run[@]}" apt-get update -q >&2
    updated=yes
    "${run[@]}" apt-get install -y -q --no-install-recommends "$@" >&2
}

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] || install "${missing[@]}"

# Debian 12's own Rust is too old; rustup is a package from Debian 13 on.
if ! command -v cargo >/dev/null && apt-cache show rustup >/dev/null 2>&1; then
    install rustup
    rustup toolchain install stable --profile minimal --component clippy,rustfmt >&2
fi
if ! command -v cargo >/dev/null; then
    say "no cargo on PATH: install Rust $rust or newer with rustup (https://rustup.rs), then try again"
    exit 2
fi
have=$(cargo --version | awk '{print $2}')
if [ "$(printf '%s\n' "$rust" "$have" | sort -V | head -n 1)" != "$rust" ]; then
    say "Rust $have is too old: $rust or newer is needed (rustup update stable)"
    exit 2
fi
