#!/usr/bin/env bash
# The tests of the ops on what nvcc and Triton make of the GPU's kernels: an emulator runs their PTX,
# with AddressSanitizer over every access to memory. PYTHON: the interpreter to use; PARALLEL: options
# of pytest-xdist; arguments go to pytest, in place of the test files. Without nvcc, Triton's kernels
# alone. PTX_CLOCK: a file that tells what every block waits for, by a model (ptx/clock.h).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
folder=$PWD/build/ptx
# the name under which the library looks for torch's CUDA
emulator=$folder/libtorch_cuda.so
mkdir -p "$folder"
if [ ! -e "$emulator" ] || [ -n "$(find tests/ptx -name '*.[ch]*' -newer "$emulator")" ]; then
  (cd "$folder" && printf '%s\0' ../../tests/ptx/*.cpp | xargs -0 -n 1 -P "$(nproc)" \
    g++ -std=c++20 -O2 -g1 -fPIC -Wall -Wextra -fno-omit-frame-pointer -fsanitize=address -c)
  g++ -shared -fsanitize=address -Wl,-soname,libtorch_cuda.so "$folder"/*.o -o "$emulator"
fi
DSPARK_CUDART=$emulator "$PYTHON" setup.py --quiet build \
  --build-base build/ptx/base --build-lib build/ptx/lib
ops=(dspark_kernels/ops/[a-z]*.py) files=("${ops[@]/#*\//tests/test_}")
if [ $# -eq 0 ]; then set -- tests/test_{ptx,many_trees,fused_pass}.py "${files[@]}"; fi
too_long=tests/test_chain_reject.py::test_the_emitted_law_is_the_targets  # 50,000 large blocks
env LD_PRELOAD="$(g++ -print-file-name=libasan.so) $emulator" TRITON_CACHE_DIR="$folder/triton" \
  ASAN_OPTIONS=detect_leaks=0:handle_segv=0 \
  "$PYTHON" -P -m pytest ${PARALLEL:-} --package build/ptx/lib --device ptx -q -p no:cacheprovider \
  -m "backend or compiled or ptx" --deselect "$too_long" "$@"
