#!/usr/bin/env bash
# The ladder at 8B shape on one GPU of at least 80 GB: random weights, NF4, bf16. Under ten minutes, no download.
# Usage: bench/h200.sh [--size 8b] [--rounds 5]     Writes bench/results/gpu.json and prints the table.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
"$python" -c 'import datasets, peft, trl' || {
  echo "the peers are missing: $python -m pip install -c constraints.txt -e '.[bench]'" >&2; exit 2; }
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}  # on several, the peers' trainer would scale its loss
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTORCH_ALLOC_CONF=expandable_segments:True
exec timeout 600 "$python" -m bench.gpu "$@"
