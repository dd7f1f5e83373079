#!/usr/bin/env bash
# Run the SageMaker SDK's local mode over podman's Docker-compatible API.
#   unshare --net --mount local_mode.sh IMAGE MODEL_DIR SCRATCH_DIR
# In a network namespace of its own the SDK's fixed port 8080 is free and nothing can reach out.
set -euo pipefail
image=$1 model=$2 scratch=$3
ip link set lo up
podman system service --time 0 "unix://$scratch/docker.sock" 2> "$scratch/api.log" &
service=$!
clean_up() {
    podman network rm --force sagemaker-local > /dev/null 2>&1 || true
    kill "$service"
    wait "$service" || true
}
trap clean_up EXIT
for _ in $(seq 100); do
    [ ! -S "$scratch/docker.sock" ] || break
    sleep 0.1
done
cat > "$scratch/sdk.yaml" << 'YAML'
SchemaVersion: '1.0'
SageMaker:
  PythonSDK:
    Modules:
      TelemetryOptOut: true
YAML
export DOCKER_HOST=unix://$scratch/docker.sock DOCKER_CONFIG=$scratch/docker
export SAGEMAKER_USER_CONFIG_OVERRIDE=$scratch/sdk.yaml SAGEMAKER_SUPPRESS_V2_WARNING=1
export AWS_ACCESS_KEY_ID=none AWS_SECRET_ACCESS_KEY=none AWS_DEFAULT_REGION=us-east-1
timeout 150 .venv-sdk/bin/python tests/image/local_mode.py "$image" "$model" "$scratch"
podman ps --all --filter name=algo-1 --format 'left: {{.Status}}'
podman ps --all --quiet --filter name=algo-1 | xargs --no-run-if-empty podman rm --force > /dev/null
