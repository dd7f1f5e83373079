#!/usr/bin/env bash
# A stand-in for the base image python:3.11-slim, for a machine that reaches a Debian mirror but no
# image registry: base.sh OUT.tar writes Debian 12 with its own Python 3.11, for ARCHITECTURE (amd64 or
# arm64). For tests: never publish an image built on it.
set -euo pipefail
output=$(realpath -m "$1")
mkdir -p "$(dirname "$output")"
scratch=$(mktemp -d)
trap 'rm -rf --one-file-system "$scratch"' EXIT
chmod 755 "$scratch" # apt downloads as its own user

# The official image has python and pip in /usr/local and lets pip install.
cat > "$scratch/names" <<'HOOK'
#!/usr/bin/env bash
set -euo pipefail
rm "$1"/usr/lib/python3.11/EXTERNALLY-MANAGED
ln -s /usr/bin/python3 "$1/usr/local/bin/python"
HOOK
chmod +x "$scratch/names"

TMPDIR=$scratch mmdebstrap --quiet --variant=minbase --mode=root ${ARCHITECTURE:+--architectures="$ARCHITECTURE"} \
    --include=ca-certificates,netbase,tzdata,python3,python3-pip \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --aptopt='Acquire::Languages "none"' \
    --customize-hook="$scratch/names" \
    bookworm "$scratch/base.tar" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"}
mv "$scratch/base.tar" "$output"
