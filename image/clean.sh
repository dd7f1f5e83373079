#!/usr/bin/env bash
# Remove build/image, where podman's images may still be mounted.
set -euo pipefail
cd "$(dirname "$0")/.."
awk -v folder="$PWD/build/image/" 'index($2, folder) == 1 { print $2 }' /proc/self/mounts |
    sort -r | xargs -r umount -l
rm -rf --one-file-system build/image
