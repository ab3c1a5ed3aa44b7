#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, part by part; a part that fails does not stop the others.
#
#   PYTHON=.venv/bin/python benchmarks/gpu.sh [--quick] [--print] [OUT] [PART…]
#
# OUT    a folder, there already or written with a slash; default: benchmarks/results
# PART   default: all of these, in this order
#          tests        tests/gpu, with TESO_REQUIRE_GPU=1: what is missing fails
#          kernels      the CUDA operators
#          engines      all that follow: ours against PyTorch, by precision and batch
#                       (engines-fp32-1 engines-fp16-1 engines-fp32-8 engines-fp16-8 engines-fp32-32 engines-fp16-32)
#          live         streams of 30 frames a second, several at once, by ONNX Runtime
#          training     a step on composed scenes; TESO_AVS_DATA names the folder of media
#          finetuning   a step on videos at full size
# --quick  fewer repetitions, and no torch.compile, which takes minutes;  --print  the commands only, without running them
# BUNDLE names another bundle than the shipped one for the engines.
#
# A part leaves OUT/GPU/PART.json (tests: .xml) and PART.log, or PART.failed with the reason. After each part
# all reports of that folder are merged into OUT/GPU.json and OUT/GPU.md. So parts may be run one by one, and the
# folders of several visits may be put together. Exit code: 0, 1 (a part failed), 2 (no GPU, no such part).
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
  gpu="$("$python" -m benchmarks.gpu_report --name)" || exit 2
fi
folder="$out/$gpu"
run=("$python" -m benchmarks run)

# Sets ``command`` to what a part runs.
command_of() {
  local result="$folder/$1.json" precision batch
  case "$1" in
    tests) command=(env TESO_REQUIRE_GPU=1 "$python" -m pytest -m gpu tests/gpu "--junitxml=$folder/tests.xml") ;;
    kernels | training | finetuning) command=("${run[@]}" "$1" --out "$result" ${is_quick:+--quick}) ;;
    engines-*)
      IFS=- read -r _ precision batch <<<"$1"
      command=("${run[@]}" gpu-engines --precision "$precision" --batch "$batch" --out "$result" ${is_quick:+--quick})
      [[ -z ${BUNDLE:-} ]] || command+=(--bundle "$BUNDLE")
      ;;
    live)
      command=("${run[@]}" live --backend cuda --out "$result")
      [[ -n $is_quick ]] && command+=(--quick) || command+=(--seconds 30)
      for streams in 1 4 16; do command+=(--streams "$streams"); done
      ;;
  esac
  # The names of the parts are those of the benchmarks; these two run on the CPU unless they are asked for a GPU.
  [[ $1 != training && $1 != finetuning ]] || command+=(--device cuda)
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
  "$python" -m benchmarks.gpu_report "$folder" --out "$out/$gpu.json" || failed+=("report after $part")
done
[[ ${#failed[@]} -eq 0 ]] && exit 0
echo "failed: $(printf '%s, ' "${failed[@]}" | sed 's/, $//')" >&2
exit 1
