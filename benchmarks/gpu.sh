#!/usr/bin/env bash
# Everything that wants a GPU, in one command of less than 8 minutes.
#
#   benchmarks/gpu.sh [FOLDER]   on a machine with torch, torchvision and a GPU; results go to
#                                FOLDER (gpu-results)
#   benchmarks/gpu.sh pack       elsewhere, before, if that machine has no package index: fills
#                                .wheels for it
#
# PYTHON names the interpreter (python3); for pack, PYTHON_VERSION that of the other machine (3.12).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
# Dependencies of clip2sam that a machine for numerical work seldom has.
needed=(open_clip_torch segment-anything pycocotools ftfy wcwidth pooch platformdirs pillow filelock
  jaxtyping wadler-lindig)

if [ "${1:-}" = pack ]; then
  exec "$python" -m pip download --no-deps --only-binary=:all: --implementation cp \
    --python-version "${PYTHON_VERSION:-3.12}" --platform manylinux_2_28_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d .wheels "${needed[@]}"
fi

output=${1:-gpu-results}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ -d .wheels ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" .wheels/*.whl
  export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}"
else
  "$python" -m pip install -q -e .
fi
timeout 300 "$python" benchmarks/gpu.py --output "$output"
timeout 170 "$python" benchmarks/growth.py --sam vit_h --output "$output/growth"
