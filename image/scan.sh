#!/usr/bin/env bash
# Ask Amazon Inspector about build/sbom.cdx.json; fail on serious vulnerabilities.
set -euo pipefail
cd "$(dirname "$0")/.."
aws inspector-scan scan-sbom --sbom file://build/sbom.cdx.json \
    --output-format CYCLONE_DX_1_5 --output json > build/vulnerabilities.json
.venv/bin/python -m image.audit.gate < build/vulnerabilities.json
