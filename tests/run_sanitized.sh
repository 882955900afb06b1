#!/usr/bin/env bash
# The tests of the ops on a library built with AddressSanitizer and UndefinedBehaviorSanitizer.
# PYTHON: the interpreter to use; PARALLEL: options of pytest-xdist; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
DSPARK_SANITIZE=1 DSPARK_CUDA_ARCHS="" "$PYTHON" setup.py --quiet build \
  --build-base build/sanitize --build-lib build/sanitized
preload="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)"
ops=(dspark_kernels/ops/[a-z]*.py) files=("${ops[@]/#*\//tests/test_}")
# torch keeps its own memory to the end: leaks are not ours to report
env LD_PRELOAD="$preload" DSPARK_BACKEND=native \
  ASAN_OPTIONS=detect_leaks=0:handle_segv=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
  "$PYTHON" -P -m pytest ${PARALLEL:-} --package build/sanitized -q -p no:cacheprovider -m backend \
  "${files[@]}" "$@"
