#!/usr/bin/env bash
# Push IMAGE to REPOSITORY_URI and write imageDetail.json, which names it by its digest.
set -euo pipefail
cd "$(dirname "$0")/.."
. image/engine.sh
[ -n "${REPOSITORY_URI:-}" ] || die "REPOSITORY_URI is not set: ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME"
"$ENGINE" push "$IMAGE"
digest=$(aws ecr describe-images --repository-name "${REPOSITORY_URI#*/}" \
    --image-ids "imageTag=${IMAGE##*:}" --query 'imageDetails[0].imageDigest' --output text)
printf '{"ImageURI": "%s@%s"}\n' "$REPOSITORY_URI" "$digest" | tee imageDetail.json
