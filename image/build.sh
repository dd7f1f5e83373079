#!/usr/bin/env bash
# Build IMAGE from the Dockerfile. VARIANT is cpu or cuda, PLATFORM linux/amd64 or linux/arm64, BASE_IMAGE
# the image to build on, TORCH_INDEX where pip finds torch for CPUs. Layers of the newest image of both in
# REPOSITORY_URI are used again.
set -euo pipefail
cd "$(dirname "$0")/.."
. image/engine.sh
platform=${PLATFORM:-linux/amd64}
architecture=${platform#linux/}
default_base=$(sed -n 's/^ARG BASE_IMAGE=//p' Dockerfile)

# Without a registry: a stand-in, made once.
stand_in() {
    local name=localhost/stand-in:bookworm
    [ "$architecture" = amd64 ] || name+="-$architecture"
    if ! podman image exists "$name"; then
        say "no registry has $default_base; making a stand-in of Debian's Python, for tests only"
        install_missing mmdebstrap=mmdebstrap arch-test=arch-test
        ARCHITECTURE=$architecture image/base.sh "$work/base.tar"
        podman import -q --arch "$architecture" --change 'ENV LANG=C.UTF-8' --change 'CMD ["python3"]' \
            --change 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin' \
            "$work/base.tar" "$name" > /dev/null
        rm "$work/base.tar"
    fi
    echo "$name"
}

# The tag of the newest image of this variant and platform in the ECR repository, if there is one.
newest() {
    local prefix=${VARIANT:-cpu}-
    [ "$architecture" = amd64 ] || prefix+="$architecture-"
    aws ecr describe-images --repository-name "${REPOSITORY_URI#*/}" --output text \
        --query 'reverse(sort_by(imageDetails, &imagePushedAt))[].imageTags[]' |
        tr '\t' '\n' | grep -m 1 -E "^${prefix}[0-9a-f]+$"
}

emulate "$architecture"
options=()
if [ -n "${REPOSITORY_URI:-}" ]; then
    options+=(--build-arg BUILDKIT_INLINE_CACHE=1)
    if tag=$(newest); then
        options+=(--cache-from "$REPOSITORY_URI:$tag")
        say "using layers again: --cache-from $REPOSITORY_URI:$tag"
    fi
fi
if [ "$ENGINE" = podman ]; then
    if [ -z "${BASE_IMAGE:-}" ]; then
        podman pull -q --platform "$platform" "$default_base" > /dev/null 2>&1 || BASE_IMAGE=$(stand_in)
    fi
    options+=(--pull=never --layers)
    if [ -n "${CONTAINERS_CONF:-}" ]; then export CONTAINERS_CONF=$CONTAINERS_CONF_BUILD; fi
fi
# SageMaker takes no attestations beside an image.
export BUILDX_NO_DEFAULT_ATTESTATIONS=1
"$ENGINE" build --platform "$platform" "${options[@]}" \
    --build-arg "BASE_IMAGE=${BASE_IMAGE:-$default_base}" \
    --build-arg "VARIANT=${VARIANT:-cpu}" \
    --build-arg "TORCH_INDEX=${TORCH_INDEX:-}" \
    --build-arg "VERSION=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' container/__init__.py)" \
    --build-arg "REVISION=${COMMIT:-}" \
    --build-arg "CREATED=$(git log -1 --format=%cI 2> /dev/null || true)" \
    --tag "$IMAGE" .
