#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, part by part; a part that fails takes no other along.
#
#   PYTHON=.venv/bin/python benchmarks/gpu.sh [--quick] [--print] [OUT] [PART…]
#
# OUT    a folder, there already or written with a slash; default: benchmarks/results
# PART   default: all of these, in this order
#          tests        tests/gpu, with TESO_REQUIRE_GPU=1: whatever is missing fails
#          kernels      the CUDA operators
#          engines      all that follow: ours against PyTorch, by precision and batch
#                       (engines-fp32-1 engines-fp16-1 engines-fp32-8 engines-fp16-8 engines-fp32-32 engines-fp16-32)
#          live         streams of 30 frames a second, several at once, by ONNX Runtime
#          training     a step on composed scenes; TESO_AVS_DATA names the folder of media
#          finetuning   a step on videos at full size
# --quick  fewer repetitions, and no torch.compile, which takes minutes;  --print  the commands only, without running them
# BUNDLE names another bundle than the shipped one for the engines.
#
# A part leaves OUT/GPU/PART.json (tests: .xml) and PART.log, or PART.failed with the reason. Behind each part all
# that lies there is put together in OUT/GPU.json and OUT/GPU.md, so that parts may be run one by one, and folders of
# several visits laid together. Exit code: 0, 1 (a part failed), 2 (no GPU, no such part).
set -uo pipefail
python="${PYTHON:-python3}"
all=(tests kernels)
for batch in 1 8 32; do all+=("engines-fp32-$batch" "engines-fp16-$batch"); done
all+=(live training finetuning)

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }
refuse() { echo "$1" >&2; exit 2; }

out="" is_quick="" prints_only="" parts=()
for argument in "$@"; do
  case "$argument" in
    --help | -h) usage; exit 0 ;;
    --quick) is_quick=1 ;;
    --print) prints_only=1 ;;
    -*) refuse "no option '$argument': --quick, --print or --help" ;;
    engines) for part in "${all[@]}"; do [[ $part == engines-* ]] && parts+=("$part"); done ;;
    *)
      if [[ " ${all[*]} " == *" $argument "* ]]; then
        parts+=("$argument")
      elif [[ -z $out && ( $argument == */* || -d $argument ) ]]; then
        out="$(realpath -m -- "$argument")"
      else
        refuse "no part '$argument', and no folder: engines or one of ${all[*]}"
      fi
      ;;
  esac
done
[[ ${#parts[@]} -gt 0 ]] || parts=("${all[@]}")
[[ -z ${BUNDLE:-} ]] || BUNDLE="$(realpath -m -- "$BUNDLE")"
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
out="${out:-$PWD/benchmarks/results}"

if [[ -n $prints_only ]]; then
  gpu=GPU
else
  gpu="$("$python" benchmarks/gpu_report.py --name)" || exit 2
fi
folder="$out/$gpu"

# Sets ``command`` to what a part runs.
command_of() {
  local result="$folder/$1.json" precision batch
  case "$1" in
    tests) command=(env TESO_REQUIRE_GPU=1 "$python" -m pytest -m gpu tests/gpu "--junitxml=$folder/tests.xml") ;;
    kernels) command=("$python" benchmarks/kernels.py --out "$result" ${is_quick:+--repetitions 5}) ;;
    engines-*)
      IFS=- read -r _ precision batch <<<"$1"
      command=("$python" benchmarks/gpu_engines.py --precision "$precision" --batch "$batch" --out "$result")
      command+=(${is_quick:+--seconds 5 --torch eager --torch cuda-graph})
      [[ -z ${BUNDLE:-} ]] || command+=(--bundle "$BUNDLE")
      ;;
    live)
      command=("$python" benchmarks/live.py --backend cuda --out "$result" --seconds)
      [[ -n $is_quick ]] && command+=(14) || command+=(30)
      for streams in 1 4 16; do command+=(--streams "$streams"); done
      ;;
    training) command=("$python" benchmarks/training.py --device cuda --out "$result" ${is_quick:+--steps 3}) ;;
    finetuning) command=("$python" benchmarks/finetuning.py --device cuda --out "$result" ${is_quick:+--steps 2}) ;;
  esac
}

failed=()
for part in "${parts[@]}"; do
  command_of "$part"
  if [[ -n $prints_only ]]; then
    printf '%q ' "${command[@]}"
    echo
    continue
  fi
  mkdir -p "$folder" || exit 2
  rm -f "$folder/$part".{json,xml,log,failed}
  echo "== $part" >&2
  "${command[@]}" 2>&1 | tee "$folder/$part.log"
  code=$?
  if [[ $code -ne 0 ]]; then
    failed+=("$part")
    echo "exit code $code: $(grep -v '^[[:space:]]*$' "$folder/$part.log" | tail -n 1)" >"$folder/$part.failed"
  fi
  "$python" benchmarks/gpu_report.py "$folder" --out "$out/$gpu.json" || failed+=("report behind $part")
done
[[ ${#failed[@]} -eq 0 ]] && exit 0
echo "failed: $(printf '%s, ' "${failed[@]}" | sed 's/, $//')" >&2
exit 1
