#!/bin/sh
# Prepares a Debian machine for the lab: installs the packages it needs and unpacks the kernels into a cache.
# usage: setup.sh [--selftests] [6.1] [6.12]        (default: both)
# --selftests also builds Linux's own KVM selftests from Debian's source of each kernel.
# NVMX_CACHE overrides the cache directory (default ~/.cache/nvmx). Nothing is installed into /boot or /lib/modules.
# Quick and silent on the network when everything is there already. NVMX_LAB_REFRESH=1 looks for newer kernels.
set -eu

cache=${NVMX_CACHE:-${HOME:-/root}/.cache/nvmx}/lab
selftests=
if [ "${1:-}" = --selftests ]; then selftests=yes; shift; fi
kernels=${*:-6.1 6.12}
format=4 # of the cache: raise it when what stands in there changes
selftests_format=1 # likewise
export DEBIAN_FRONTEND=noninteractive LC_ALL=C

say() { printf 'lab setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
retry() { # COMMAND...: tries thrice, mirrors and networks being what they are
    for pause in 2 8 0; do
        "$@" && return 0
        [ $pause = 0 ] || { say "failed: $* (again in $pause s)"; sleep $pause; }
    done
    return 1
}

updated=
update_lists() {
    [ -n "$updated" ] && return 0
    retry as_root apt-get update -q >&2 || die "apt-get update failed: is the network up? (the lab needs Debian's packages once)"
    updated=yes
}

install_packages() { # PACKAGE...
    missing=
    for p in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' $p 2>/dev/null || true)" = installed ] || missing="$missing $p"
    done
    [ -z "$missing" ] && return 0
    say "installing$missing"
    update_lists
    # shellcheck disable=SC2086
    retry as_root apt-get install -y -q --no-install-recommends $missing >&2 || die "apt-get install$missing failed"
}

candidate() { apt-cache policy "$1" 2>/dev/null | awk '$1 == "Candidate:" && $2 != "(none)" {print $2; exit}'; }

# The image package that a meta package stands for at this moment: its name carries the ABI, which changes with updates.
image_of() { apt-cache depends "$1" 2>/dev/null | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ {print $2; exit}'; }

add_backports() {
    say "adding bookworm-backports for kernel 6.12"
    echo 'deb http://deb.debian.org/debian bookworm-backports main' | as_root tee /etc/apt/sources.list.d/nvmx-lab-backports.list >/dev/null
    updated=
    update_lists
}

find_image() { # VERSION -> name of the image package
    case $1 in
        6.1) metas="linux-image-cloud-amd64" pattern='^linux-image-6[.]1[.]' ;;
        6.12) metas="linux-image-6.12-cloud-amd64 linux-image-cloud-amd64/bookworm-backports" pattern='^linux-image-6[.]12[.]' ;;
        *) die "unknown kernel $1 (known: 6.1, 6.12)" ;;
    esac
    for meta in $metas; do
        image=$(image_of "${meta%%/*}")
        if echo "$image" | grep -Eq "$pattern"; then echo "$image"; return 0; fi
    done
    # No meta package leads there: take the newest image package of that series.
    apt-cache search --names-only "$pattern.*-cloud-amd64\$" | awk '{print $1}' | sort -V | tail -n 1
}

# u32 or u8 at an offset of a file, little endian
number_at() { od -An "-tu$3" "-j$2" "-N$3" "$1" | tr -d ' \n'; }

# The kernel proper out of a bzImage (boot protocol: setup_sects, payload_offset, payload_length), so that the slow
# emulated CPU need not decompress it at every boot.
extract_vmlinux() { # BZIMAGE OUT
    start=$((($(number_at "$1" 497 1) + 1) * 512 + $(number_at "$1" 584 4)))
    length=$(($(number_at "$1" 588 4) - 4)) # the last four bytes are the unpacked size
    magic=$(od -An -tx1 "-j$start" -N4 "$1" | tr -d ' \n')
    case $magic in
        02214c18) unpack="lz4 -dc" ;;
        28b52ffd) unpack="zstd -dcq" ;;
        fd377a58) unpack="xz -dc" ;;
        1f8b*) unpack="gzip -dc" ;;
        *) die "$1: payload compressed in an unknown way (magic $magic)" ;;
    esac
    tail -c "+$((start + 1))" "$1" | head -c "$length" | $unpack >"$2" || die "$1: $unpack failed"
    [ "$(od -An -tx1 -N4 "$2" | tr -d ' \n')" = 7f454c46 ] || die "$1: the payload is no ELF file"
}

unpack_module() { # MODULE-WITHOUT-SUFFIX OUT
    if [ -f "$1.ko" ]; then cp "$1.ko" "$2.tmp"
    elif [ -f "$1.ko.xz" ]; then xz -dc "$1.ko.xz" >"$2.tmp"
    elif [ -f "$1.ko.zst" ]; then zstd -dcq "$1.ko.zst" >"$2.tmp"
    else die "$1.ko: not in the package"; fi
    # Type information and the maps from enum names to numbers cost the emulated CPU seconds at load time.
    objcopy --strip-debug -R .BTF -R _ftrace_eval_map -R __mcount_loc "$2.tmp" "$2"
    rm -f "$2.tmp"
}

fetch_package() { # PACKAGE DIRECTORY
    (cd "$2" && apt-get -q -o APT::Sandbox::User=root download "$1" >&2)
}

fetch_kernel() { # VERSION
    dir=$cache/$1
    if [ -z "${NVMX_LAB_REFRESH:-}" ] && [ "$(cat "$dir/complete" 2>/dev/null)" = "$format" ]; then return 0; fi
    image=$(find_image "$1")
    if [ -z "$image" ]; then update_lists; image=$(find_image "$1"); fi
    if [ -z "$image" ] && [ "$1" = 6.12 ]; then add_backports; image=$(find_image "$1"); fi
    [ -n "$image" ] || die "no cloud image of kernel $1 in the package lists"
    version=$(candidate "$image")
    if [ "$(cat "$dir/complete" 2>/dev/null)" = "$format" ] && [ "$(cat "$dir/package")" = "$image $version" ]; then return 0; fi
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/unpack.XXXXXX")
    trap 'rm -rf "$work"' EXIT INT TERM
    say "fetching $image $version"
    # A list that is out of date names files that the mirror has dropped: refresh it and look again.
    if ! fetch_package "$image" "$work"; then
        updated=; update_lists
        image=$(find_image "$1"); version=$(candidate "$image")
        retry fetch_package "$image" "$work" || die "download of $image failed"
    fi
    dpkg -x "$work"/"$image"_*.deb "$work/root"
    mkdir -p "$work/new/modules"
    release=$(basename "$work"/root/lib/modules/*)
    extract_vmlinux "$work/root/boot/vmlinuz-$release" "$work/new/vmlinux"
    cp "$work/root/boot/vmlinuz-$release" "$work/new/vmlinuz"
    for m in virt/lib/irqbypass arch/x86/kvm/kvm arch/x86/kvm/kvm-intel; do
        unpack_module "$work/root/lib/modules/$release/kernel/$m" "$work/new/modules/${m##*/}.ko"
    done
    echo "$release" >"$work/new/release"
    echo "$image $version" >"$work/new/package"
    echo "$format" >"$work/new/complete"
    rm -rf "$dir.old"
    [ -e "$dir" ] && mv "$dir" "$dir.old"
    mv "$work/new" "$dir"
    rm -rf "$dir.old" "$work"
    trap - EXIT INT TERM
    say "kernel $1: $release in $dir"
}

# Linux's KVM selftests, out of the source package: a tenth of the tree is what their build and its headers need. All of
# them are built, for that takes seconds; one that does not build is missed by whoever wants to run it.
fetch_selftests() { # VERSION
    dir=$cache/selftests/$1
    if [ -z "${NVMX_LAB_REFRESH:-}" ] && [ "$(cat "$dir/complete" 2>/dev/null)" = "$selftests_format" ]; then return 0; fi
    source=linux-source-$1
    version=$(candidate "$source")
    if [ -z "$version" ]; then update_lists; version=$(candidate "$source"); fi
    if [ -z "$version" ] && [ "$1" = 6.12 ]; then add_backports; version=$(candidate "$source"); fi
    [ -n "$version" ] || die "no $source in the package lists"
    if [ "$(cat "$dir/complete" 2>/dev/null)" = "$selftests_format" ] && [ "$(cat "$dir/package")" = "$source $version" ]; then return 0; fi
    mkdir -p "$cache/selftests"
    work=$(mktemp -d "$cache/unpack.XXXXXX")
    trap 'rm -rf "$work"' EXIT INT TERM
    say "fetching $source $version for its KVM selftests"
    if ! fetch_package "$source" "$work"; then
        updated=; update_lists
        version=$(candidate "$source")
        retry fetch_package "$source" "$work" || die "download of $source failed"
    fi
    mkdir "$work/tree" "$work/new"
    dpkg-deb --fsys-tarfile "$work"/"$source"_*.deb | tar -xO "./usr/src/$source.tar.xz" |
        tar -xJ -C "$work/tree" --strip-components=1 --wildcards "$source/Makefile" "$source/Kbuild" "$source/scripts" \
            "$source/include" "$source/usr/include" "$source/arch/x86/Kbuild" "$source/arch/x86/Makefile*" \
            "$source/arch/x86/include" "$source/arch/x86/tools" "$source/arch/x86/entry/syscalls" \
            "$source/tools/arch/x86/include" "$source/tools/build" "$source/tools/include" "$source/tools/lib/*.c" \
            "$source/tools/scripts" "$source/tools/testing/selftests/*.h" "$source/tools/testing/selftests/*.mk" \
            "$source/tools/testing/selftests/kvm" "$source/tools/testing/selftests/rseq" || die "unpacking $source failed"
    rm -f "$work"/*.deb
    tests=$work/tree/tools/testing/selftests/kvm
    make -s -C "$work/tree" -j"$(nproc)" headers >"$work/log" 2>&1 || { cat "$work/log" >&2; die "the headers of $source do not install"; }
    make -s -k -C "$tests" -j"$(nproc)" >"$work/log" 2>&1 || true
    # Programs are what is executable and no script; the directory of the architecture has another name in each version.
    find "$tests" -type f -perm -u+x ! -name '*.sh' -exec strip {} + -exec mv -t "$work/new" {} +
    [ -e "$work/new/state_test" ] || { tail -n 30 "$work/log" >&2; die "the KVM selftests of $source do not build"; }
    echo "$source $version" >"$work/new/package"
    echo "$selftests_format" >"$work/new/complete"
    rm -rf "$dir"
    mv "$work/new" "$dir"
    rm -rf "$work"
    trap - EXIT INT TERM
    say "KVM selftests of $version in $dir"
}

mkdir -p "$cache"
# Two set-ups at once would fight over the lists and the cache: the second waits.
exec 9>"$cache/setup.lock"
flock 9
install_packages bochs bochs-term bochsbios busybox-static binutils util-linux lz4 xz-utils zstd
for k in $kernels; do fetch_kernel "$k"; done
if [ -n "$selftests" ]; then
    install_packages gcc libc6-dev make
    for k in $kernels; do fetch_selftests "$k"; done
fi
