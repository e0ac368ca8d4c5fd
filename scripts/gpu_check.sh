#!/usr/bin/env bash
# What a GPU server without package registries needs, in one command: takes a bundled build, or
# builds on the server; runs the tests; compares on CUDA. Needs a Python that has torch and
# numpy.
#
#   scripts/gpu_check.sh [--bundle DIR] [-- ARGUMENTS OF torchpace compare]
#   scripts/gpu_check.sh --prepare     on a machine that can build: makes _bundle/, to be taken
#                                      along with the tree
#
#   TORCHPACE_PYTHON=PATH   the interpreter (default: the first python3 that has torch)
#   OUT=DIR                 where the results go (default torchpace-gpu/)
#   CHECK=tests|compare     only one of the two
# A build is tied to its version of torch: _bundle/torch.txt names it, and another one is refused.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
limit_mib=64

prepare() {
  source "$root/scripts/setup.sh" --bundle
  step "bundle"
  rm -rf "$root/_bundle"
  cmake --install "$build" --component bundle --strip --prefix "$root/_bundle" >/dev/null
  torch_version "$(torch_folder "$python")" >"$root/_bundle/torch.txt"
  if [[ -d "$TORCHPACE_CACHE/text/shakespeare" ]]; then
    mkdir -p "$root/_bundle/cache/text"
    cp -r "$TORCHPACE_CACHE/text/shakespeare" "$root/_bundle/cache/text/"
  fi
  local mib
  mib="$(du -sm "$root/_bundle" | cut -f1)"
  ((mib <= limit_mib)) || fail "_bundle is $mib MiB: expected at most $limit_mib"
  note "_bundle/ ($mib MiB) holds: $(cd "$root/_bundle/bin" && echo *)"
}

# Sets programs and torch. LibTorch is taken from the interpreter, wherever the build had it.
find_programs() { # bundled folder or ""
  if [[ -n "$1" ]]; then
    local there
    [[ -f "$1/torch.txt" ]] || fail "$1 is no bundled build: expected torch.txt in it" \
      "Make one: scripts/gpu_check.sh --prepare"
    there="$(torch_version "$torch")"
    [[ "$(<"$1/torch.txt")" == "$there" ]] || fail \
      "the bundled build is for torch $(<"$1/torch.txt"), but $python has torch $there" \
      "Make one for it: TORCHPACE_TORCH=$there scripts/gpu_check.sh --prepare"
    programs="$1/bin"
    note "bundled build: $programs"
  else
    source "$root/scripts/setup.sh" --bundle
    programs="$build/bin"
  fi
  local folder folders="$torch/lib"
  for folder in "$torch"/../nvidia/*/lib; do # before the system's, which may hold another cuDNN
    [[ ! -d "$folder" ]] || folders+=":$(cd "$folder" && pwd)"
  done
  export LD_LIBRARY_PATH="$folders${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
}

run_tests() {
  local program
  for program in unit_tests torch_tests; do
    if [[ -x "$programs/$program" ]]; then
      step "$program"
      (cd "$root" &&
        "$programs/$program" --gtest_brief=1 --gtest_output="xml:$out/$program.xml") || status=1
    else
      note "no $program in this build"
    fi
  done
  if "$python" -c 'import pytest' 2>/dev/null; then
    step "pytest"
    (cd "$root/python" && "$python" -m pytest -p no:cacheprovider) || status=1
  fi
}

run_comparison() {
  step "torchpace compare --device cuda:0 $*"
  "$programs/torchpace" compare --device cuda:0 --output "$out/report" "$@" || status=$?
}

bundled=""
[[ ! -d "$root/_bundle" ]] || bundled="$root/_bundle"
while (($#)); do
  case "$1" in
    --prepare)
      prepare
      exit
      ;;
    --bundle)
      bundled="${2:?--bundle: expected a folder}"
      shift 2
      ;;
    --)
      shift
      break
      ;;
    *)
      fail "unknown argument '$1'" \
        "usage: scripts/gpu_check.sh [--bundle DIR] [--prepare] [-- ARGUMENTS OF torchpace compare]"
      ;;
  esac
done

step "LibTorch"
if [[ -z "${TORCHPACE_PYTHON:-}" && ! -x "$python" ]]; then
  python="$(command -v python3)" || fail "no python3 here" \
    "TORCHPACE_PYTHON names the interpreter that has torch."
fi
torch="$(torch_folder "$python")"
[[ -n "$torch" ]] || fail "$python has no torch" \
  "TORCHPACE_PYTHON names the interpreter that has it."
note "torch $(torch_version "$torch") of $python"
export TORCHPACE_PYTHON="$python"
out="${OUT:-$root/torchpace-gpu}"
mkdir -p "$out"
status=0
find_programs "$bundled"
if [[ -d "$bundled/cache/text/shakespeare" && ! -d "$TORCHPACE_CACHE/text/shakespeare" ]]; then
  mkdir -p "$TORCHPACE_CACHE/text"
  cp -r "$bundled/cache/text/shakespeare" "$TORCHPACE_CACHE/text/"
fi
[[ "${CHECK:-tests}" != tests ]] || run_tests
[[ "${CHECK:-compare}" != compare ]] || run_comparison "$@"
step "results in $out; exit code $status"
exit "$status"
