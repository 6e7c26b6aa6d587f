# shellcheck shell=bash
# Sourced by the scripts of tests/: where things are, and how to give up.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck disable=SC2034 # for those who source this
target=$top/target

die() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# The kernel that the guest runs: the newest installed one that DKMS has built
# the RapidDisk modules for. It need not be the kernel of this machine.
kernel_version() {
    local found
    found=$(find /lib/modules -path '*/updates/dkms/rapiddisk.ko*' 2>/dev/null |
        cut -d/ -f4 | sort -V | tail -n 1)
    [[ -n $found ]] || die "no kernel in /lib/modules has RapidDisk modules" \
        "(apt install linux-image-amd64 linux-headers-amd64 rapiddisk-dkms)"
    [[ -r /boot/vmlinuz-$found ]] || die "cannot read /boot/vmlinuz-$found"
    echo "$found"
}

# The newest installed kernel whose brd can discard, which that of Debian 12 itself (6.1) cannot.
newer_kernel_version() {
    local found
    found=$(find /lib/modules -mindepth 1 -maxdepth 1 -name '6.12.*' -printf '%f\n' 2>/dev/null | sort -V | tail -n 1)
    [[ -n $found ]] || die "no kernel 6.12 in /lib/modules (apt install linux-image-6.12-amd64)"
    [[ -r /boot/vmlinuz-$found ]] || die "cannot read /boot/vmlinuz-$found"
    echo "$found"
}

# Something answers on this port of the loopback.
port_answers() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# The Rust in PATH has a standard library for the static musl target.
musl_target=x86_64-unknown-linux-musl
musl_std() {
    compgen -G "$(rustc --print target-libdir --target "$musl_target" 2>/dev/null)/libstd-*.rlib" >/dev/null
}

# An empty root with busybox, as Buildroot's skeleton has it.
skeleton() {
    local tree=$1 applet
    rm -rf "$tree"
    mkdir -p "$tree"/{dev,etc,proc,root,run,sys,tmp,usr/bin,usr/sbin,usr/lib/modules,var}
    ln -s usr/bin usr/sbin usr/lib "$tree"
    ln -s ../run "$tree/var/run"
    cp /bin/busybox "$tree/usr/bin/busybox"
    busybox --list-full | while read -r applet; do
        [[ $applet == usr/* ]] || applet=usr/$applet
        [[ $applet == usr/bin/busybox ]] || ln -sf /usr/bin/busybox "$tree/$applet"
    done
}
