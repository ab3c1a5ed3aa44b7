#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one go: the tests, which fail without one, then the
# measurements, into benchmarks/results/<gpu>.json. TESO_AVS_DATA names the folder of media.
#
#   PYTHON=.venv/bin/python benchmarks/gpu.sh [FOLDER FOR RESULTS]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"
out="${1:-benchmarks/results}"
gpu="$("$python" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))')"

TESO_REQUIRE_GPU=1 "$python" -m pytest -m gpu tests/gpu
mkdir -p "$out"
"$python" benchmarks/training.py --device cuda --out "$out/$gpu.json"
"$python" benchmarks/finetuning.py --device cuda --out "$out/$gpu-finetuning.json"
