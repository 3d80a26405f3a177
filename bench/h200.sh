#!/usr/bin/env bash
# The ladder at 8B shape on one GPU of at least 80 GB: random weights, NF4, bf16. Under ten minutes, no download.
# Usage: bench/h200.sh [--size 8b] [--rounds 5]     Writes bench/results/gpu.json and prints the table.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTORCH_ALLOC_CONF=expandable_segments:True
exec timeout 600 "${PYTHON:-.venv/bin/python}" -m bench.gpu "$@"
