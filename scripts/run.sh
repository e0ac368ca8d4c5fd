#!/usr/bin/env bash
# Sets up everything, then runs the comparison and writes the report. Arguments go to `torchpace
# compare`; what the environment may say is at the top of setup.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""

step "torchpace compare $*"
export TORCHPACE_PYTHON="$python"
[[ -x "$build/bin/torchpace" ]] || fail "the program torchpace was left out of the build" \
  "The messages above say what it lacks."
exec "$build/bin/torchpace" compare "$@"
