#!/usr/bin/env bash
# What <torchpace/torchpace.hpp> adds to the compile time of <torch/torch.h>: both are compiled in
# turn, without cache or precompiled header, and the times and their ratio are printed.
#
#   scripts/compile_cost.sh [ROUNDS]        default 5; the machine should be idle
#
#   TORCHPACE_TORCH, TORCHPACE_PYTHON       as for setup.sh
#   CXX                                     the compiler (default c++)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

rounds="${1:-5}"
[[ "$rounds" =~ ^[1-9][0-9]*$ ]] || fail "rounds: expected 1 or more, got '$rounds'"
torch="$(torch_folder "$python")"
[[ -n "$torch" ]] || fail "$python has no torch" "Run scripts/setup.sh first."

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
echo '#include <torch/torch.h>' >"$folder/torch.cpp"
printf '#include <torch/torch.h>\n#include <torchpace/torchpace.hpp>\n' >"$folder/torchpace.cpp"

compile_ms() { # of a unit
  local from
  from="$(date +%s%N)"
  "${CXX:-c++}" -std=c++20 -O2 -I "$root/include" -isystem "$torch/include" \
    -isystem "$torch/include/torch/csrc/api/include" -c "$folder/$1.cpp" -o "$folder/out.o"
  echo $((($(date +%s%N) - from) / 1000000))
}

compile_ms torch >/dev/null # reads the headers from the disk once
printf 'round  torch.h    torchpace.hpp  ratio\n'
for ((i = 1; i <= rounds; ++i)); do
  a="$(compile_ms torch)"
  b="$(compile_ms torchpace)"
  echo "$a $b" >>"$folder/times"
  awk -v i="$i" -v a="$a" -v b="$b" \
    'BEGIN {printf "%5d  %6.2f s   %6.2f s       %.3f\n", i, a / 1000, b / 1000, b / a}'
done
"$python" - "$folder/times" <<'PYTHON'
import statistics
import sys

pairs = [tuple(map(float, line.split())) for line in open(sys.argv[1])]
ratios = [b / a for a, b in pairs]
fastest = min(b for _, b in pairs) / min(a for a, _ in pairs)
print(
    f"ratio: median {statistics.median(ratios):.3f}, lowest {min(ratios):.3f}, "
    f"of the fastest times {fastest:.3f}"
)
PYTHON
