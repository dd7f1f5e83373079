#!/usr/bin/env bash
# Runs all that only a GPU can show, in nine minutes at most, and writes one report.
#   benchmarks/gpu_day.sh [--wheels FOLDER] [--out FOLDER] [--only PART ...] [--minutes N] [--device cpu]
# PYTHON is a Python with torch. --wheels: a folder that benchmarks/gpu_day/wheels.py has filled.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if [ "${1:-}" = --wheels ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" benchmarks/gpu_day/wheels.py unpack "$2" "$site"
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
    shift 2
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
# Nothing is fetched, and a Python that runs its first import here leaves nothing behind.
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONDONTWRITEBYTECODE=1
"$python" -m benchmarks.gpu_day "$@"
