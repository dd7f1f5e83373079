# shellcheck shell=bash
# Sourced by the scripts beside it: sets ENGINE, the program that builds and runs images. It is
# docker where a daemon answers, else podman. Root without a daemon (a CI machine, say) gets podman
# with settings and images of its own under build/image, and what is missing is installed.

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "error: $*"; exit 1; }

work=$PWD/build/image

at_most() { # at_most LIMIT WANTED: what this shell may set, for podman's own wish may be more
    local hard
    hard=$(ulimit -H "-$1")
    if [ "$hard" = unlimited ] || [ "$hard" -gt "$2" ]; then echo "$2"; else echo "$hard"; fi
}

install_missing() { # install_missing COMMAND=PACKAGE...
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%=*}" > /dev/null || [ -e "/usr/lib/podman/${pair%=*}" ] || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get > /dev/null || die "no Docker daemon; install Docker, or ${missing[*]}"
    say "installing ${missing[*]}"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
        --no-install-recommends "${missing[@]}"; } > "$work/apt.log" 2>&1 ||
        { tail -5 "$work/apt.log" >&2; die "apt-get could not install ${missing[*]}"; }
}

# Let this machine run programs of another architecture: Docker Desktop and most CI services can; root's
# Linux gets Debian's emulator.
emulate() {
    local machine handler=/proc/sys/fs/binfmt_misc
    case $1 in amd64) machine=x86_64 ;; arm64) machine=aarch64 ;; *) die "PLATFORM is linux/amd64 or linux/arm64" ;; esac
    case $(uname -m) in "$machine" | "${machine/aarch64/arm64}") return 0 ;; esac
    if [ "$ENGINE" = docker ] || [ "$(id -u)" != 0 ] || [ -e "$handler/qemu-$machine" ]; then return 0; fi
    install_missing "qemu-$machine-static=qemu-user-static"
    [ -e "$handler/register" ] || mount -t binfmt_misc binfmt_misc "$handler" ||
        die "no emulation of $1: this machine has no binfmt_misc"
    [ -e "$handler/qemu-$machine" ] || cat "/usr/lib/binfmt.d/qemu-$machine.conf" > "$handler/register"
}

# Builds see no settings of this machine's pip: lend them its certificates and folders of wheels.
# Prints what builds mount, as a list of containers.conf.
lend_pip() {
    local certificates folder inside folders='' mounts="\"$work/pip.conf:/etc/pip.conf:ro\""
    certificates=${PIP_CERT:-$(python3 -m pip config get global.cert 2> /dev/null || true)}
    echo '[global]' > "$work/pip.conf"
    if [ -f "$certificates" ]; then
        echo 'cert = /mnt/pip/ca.crt' >> "$work/pip.conf"
        mounts+=", \"$certificates:/mnt/pip/ca.crt:ro\""
    fi
    for folder in $(python3 -m pip config get global.find-links 2> /dev/null || true); do
        [ -d "${folder#file://}" ] || continue
        inside=/mnt/pip/wheels$(wc -w <<< "$folders")
        folders+=" $inside"
        mounts+=", \"${folder#file://}:$inside:ro\""
    done
    [ -z "$folders" ] || echo "find-links =$folders" >> "$work/pip.conf"
    echo "$mounts"
}

# Everything that podman would keep elsewhere stays under build/image. runc, because crun refuses
# machines with both kinds of cgroups; cgroupfs, files and k8s-file, because no systemd may run.
configure_podman() {
    local files processes
    files=$(at_most n 16384) processes=$(at_most u 16384)
    cat > "$work/containers.conf" << CONF
[containers]
default_ulimits = ["nofile=$files:$files", "nproc=$processes:$processes"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "$work/libpod"
[network]
network_config_dir = "$work/networks"
CONF
    cat > "$work/storage.conf" << CONF
[storage]
driver = "overlay"
graphroot = "$work/storage"
runroot = "$work/run"
CONF
    sed "/^\[containers\]/a volumes = [$(lend_pip)]" "$work/containers.conf" > "$work/build.conf"
    export CONTAINERS_CONF=$work/containers.conf CONTAINERS_STORAGE_CONF=$work/storage.conf
    export CONTAINERS_CONF_BUILD=$work/build.conf
    export BUILDAH_ISOLATION=chroot TMPDIR=$work/tmp
    mkdir -p "$TMPDIR"
}

mkdir -p "$work"
if [ -z "${ENGINE:-}" ]; then
    if docker info > /dev/null 2>&1; then
        ENGINE=docker
    else
        ENGINE=podman
        if [ "$(id -u)" = 0 ]; then
            install_missing podman=podman runc=runc
            configure_podman
        fi
        command -v podman > /dev/null || die "no Docker daemon answers and podman is not installed"
    fi
    export ENGINE
fi
# Docker's own image format, so that HEALTHCHECK is kept.
export BUILDAH_FORMAT=docker
