#!/usr/bin/env bash
# Run a command where Docker's API answers (podman's) and the machine's ports are free:
#   unshare --net --mount with_docker.sh SCRATCH_DIR COMMAND...
# In a network namespace of its own fixed ports are free and nothing can reach out. What the command
# leaves is removed; containers are first printed as "left: STATUS".
set -euo pipefail
scratch=$1
shift
ip link set lo up
podman ps --all --quiet | sort > "$scratch/before"
podman system service --time 0 "unix://$scratch/docker.sock" 2> "$scratch/api.log" &
service=$!
clean_up() {
    podman ps --all --quiet | sort | comm -13 "$scratch/before" - > "$scratch/left"
    while read -r container; do
        podman ps --all --filter "id=$container" --format 'left: {{.Status}}'
        podman rm --force --time 0 "$container" > /dev/null
    done < "$scratch/left"
    podman network prune --force > /dev/null
    kill "$service"
    wait "$service" || true
}
trap clean_up EXIT
for _ in $(seq 100); do
    [ ! -S "$scratch/docker.sock" ] || break
    sleep 0.1
done
export DOCKER_HOST=unix://$scratch/docker.sock DOCKER_CONFIG=$scratch/docker
timeout 360 "$@"
