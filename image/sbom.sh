#!/usr/bin/env bash
# Write the software bill of materials of IMAGE to build/sbom.cdx.json.
set -euo pipefail
cd "$(dirname "$0")/.."
. image/engine.sh
"$ENGINE" run --rm --interactive --network none --no-healthcheck --entrypoint python "$IMAGE" - \
    < image/audit/inventory.py > "$work/inventory.json"
.venv/bin/python image/audit/sbom.py "$IMAGE" < "$work/inventory.json" > build/sbom.cdx.json
say "build/sbom.cdx.json has $(grep -c '"purl"' build/sbom.cdx.json) packages"
