#!/usr/bin/env bash
# Serve MODEL (a folder) with IMAGE as SageMaker would: on /opt/ml/model, read-only, the root too.
# PORT is the port of this machine; OPTIONS goes to the engine: '-e DTYPE=float32 --gpus all', say.
set -euo pipefail
cd "$(dirname "$0")/.."
. image/engine.sh

[ -d "$MODEL" ] || die "MODEL=$MODEL is not a folder; make image-run MODEL=path/of/a/model"
network=(--publish "$PORT:8080")
# Root's podman has no port forwarding without more packages.
if [ -n "${CONTAINERS_CONF:-}" ]; then network=(--network host --env "PORT=$PORT"); fi
terminal=()
if [ -t 1 ]; then terminal=(--tty); fi
# shellcheck disable=SC2086 # OPTIONS is a list of words
exec "$ENGINE" run --rm --init=false "${terminal[@]}" "${network[@]}" --read-only --tmpfs /tmp \
    --volume "$(realpath "$MODEL"):/opt/ml/model:ro" ${OPTIONS:-} "$IMAGE" serve
