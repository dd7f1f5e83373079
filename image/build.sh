#!/usr/bin/env bash
# Build IMAGE from the Dockerfile. VARIANT is cpu or cuda, BASE_IMAGE the image to build on,
# TORCH_INDEX where pip finds torch for CPUs.
set -euo pipefail
cd "$(dirname "$0")/.."
. image/engine.sh
default_base=$(sed -n 's/^ARG BASE_IMAGE=//p' Dockerfile)

# Without a registry: a stand-in, made once.
stand_in() {
    local name=localhost/stand-in:bookworm
    if ! podman image exists "$name"; then
        say "no registry has $default_base; making a stand-in of Debian's Python, for tests only"
        install_missing mmdebstrap=mmdebstrap
        image/base.sh "$work/base.tar"
        podman import -q --change 'ENV LANG=C.UTF-8' --change 'CMD ["python3"]' \
            --change 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin' \
            "$work/base.tar" "$name" > /dev/null
        rm "$work/base.tar"
    fi
    echo "$name"
}

# podman's builds see no settings of this machine's pip: lend them the certificates and the folders
# of wheels, for the build only.
lend_pip() {
    local certificates folder inside folders=''
    certificates=${PIP_CERT:-$(python3 -m pip config get global.cert 2> /dev/null || true)}
    echo '[global]' > "$work/pip.conf"
    if [ -f "$certificates" ]; then
        echo 'cert = /mnt/pip/ca.crt' >> "$work/pip.conf"
        options+=(--volume "$certificates:/mnt/pip/ca.crt:ro")
    fi
    for folder in $(python3 -m pip config get global.find-links 2> /dev/null || true); do
        [ -d "${folder#file://}" ] || continue
        inside=/mnt/pip/wheels$(wc -w <<< "$folders")
        folders+=" $inside"
        options+=(--volume "${folder#file://}:$inside:ro")
    done
    [ -z "$folders" ] || echo "find-links =$folders" >> "$work/pip.conf"
    options+=(--volume "$work/pip.conf:/etc/pip.conf:ro")
}

options=()
if [ "$ENGINE" = podman ]; then
    if [ -z "${BASE_IMAGE:-}" ]; then
        podman pull -q "$default_base" > /dev/null 2>&1 || BASE_IMAGE=$(stand_in)
    fi
    options+=(--pull=never --layers)
    lend_pip
fi
# SageMaker takes no attestations beside an image.
export BUILDX_NO_DEFAULT_ATTESTATIONS=1
"$ENGINE" build --platform linux/amd64 "${options[@]}" \
    --build-arg "BASE_IMAGE=${BASE_IMAGE:-$default_base}" \
    --build-arg "VARIANT=${VARIANT:-cpu}" \
    --build-arg "TORCH_INDEX=${TORCH_INDEX:-}" \
    --build-arg "VERSION=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' container/__init__.py)" \
    --build-arg "REVISION=$(git rev-parse HEAD 2> /dev/null || true)" \
    --build-arg "CREATED=$(git log -1 --format=%cI 2> /dev/null || true)" \
    --tag "$IMAGE" .
