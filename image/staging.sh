#!/usr/bin/env bash
# Deploy what was pushed to the endpoint of STAGING_CONFIG (a file of sagemaker_deploy) and ask it once.
# IMAGE_URI names another image than imageDetail.json does. Without STAGING_CONFIG nothing is deployed.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${STAGING_CONFIG:-}" ]; then
    echo "STAGING_CONFIG is not set: nothing is deployed"
    exit 0
fi
uri=${IMAGE_URI:-$(sed 's/.*"ImageURI": "\(.*\)".*/\1/' imageDetail.json)}
deploy=(.venv-sdk/bin/python -m sagemaker_deploy)
"${deploy[@]}" deploy --config "$STAGING_CONFIG" --image "$uri" --yes --poll "${STAGING_POLL:-10}"
name=$(.venv-sdk/bin/python -c 'import sys, yaml; print(yaml.safe_load(open(sys.argv[1]))["name"])' \
    "$STAGING_CONFIG")
"${deploy[@]}" invoke "$name" "What is deep learning?" --max-tokens 32 --config "$STAGING_CONFIG"
