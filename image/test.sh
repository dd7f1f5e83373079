#!/usr/bin/env bash
# Build IMAGE and run tests/docker_image on it. Where the tools cannot be had the tests are skipped and the
# reason is printed, unless IMAGE_TOOLS=required, as in CI. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! (. image/engine.sh); then
    echo "image tests skipped: no tools, see above"
    [ -z "${IMAGE_TOOLS:-}" ] || exit 1
    exit 0
fi
. image/engine.sh
# For the pipeline's rehearsal and the SageMaker SDK's local mode, which use Docker's API over podman.
if [ -n "${CONTAINERS_CONF:-}" ]; then
    install_missing docker-registry=docker-registry openssl=openssl docker=podman-docker \
        docker-compose=docker-compose ip=iproute2 iptables=iptables netavark=netavark
fi
image/build.sh
CONTAINER_IMAGE=$IMAGE exec .venv/bin/python -m pytest tests/docker_image "$@"
