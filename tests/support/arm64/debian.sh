#!/usr/bin/env bash
# debian.sh OUT.tar: let this machine run arm64, and write a Debian of arm64 with Python.
set -euo pipefail
cd "$(dirname "$0")/../../.."
. image/engine.sh
install_missing mmdebstrap=mmdebstrap arch-test=arch-test
emulate arm64
ARCHITECTURE=arm64 exec image/base.sh "$1"
