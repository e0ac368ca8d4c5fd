#!/usr/bin/env bash
# Sets up everything, then runs every test: ctest and pytest. Arguments go to ctest (then pytest is
# left out); what the environment may say is at the top of setup.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" --tests

export TORCHPACE_PYTHON="$python" TORCHPACE_BUILD="$build"
status=0
step "ctest"
ctest --test-dir "$build" --output-on-failure --no-tests=error --parallel "$(jobs)" "$@" || status=1
if (($# == 0)); then
  step "pytest"
  # Most tests keep one core busy: a file of tests for each core.
  spread=()
  "$python" -c 'import xdist' 2>/dev/null && spread=(-n "$(jobs)" --dist loadfile)
  (cd "$root/python" && "$python" -m pytest "${spread[@]}") || status=1
fi
if ((status == 0)); then step "all tests passed"; else step "FAILED: see above"; fi
exit "$status"
