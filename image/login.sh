#!/usr/bin/env bash
# Log in to the ECR registry of REPOSITORY_URI; the region is the AWS command's own.
set -euo pipefail
cd "$(dirname "$0")/.."
. image/engine.sh
aws ecr get-login-password |
    "$ENGINE" login --username AWS --password-stdin "${REPOSITORY_URI%%/*}"
