#!/usr/bin/env bash
# For the minutes in which there is a GPU: does everything work there, and how fast is it? Made for
# a server without package registries, which has a Python with torch and numpy.
#
#   scripts/gpu_check.sh --prepare     on a machine that can build: makes _bundle/, a build to be
#                                      taken along with the tree
#   scripts/gpu_check.sh a [DEVICE]    does it work: facts, tests, small comparisons (300 s)
#   scripts/gpu_check.sh b [DEVICE]    numbers worth quoting (450 s)
#
#   DEVICE                  default cuda:0; cpu tries the script itself where there is no GPU
#   TORCHPACE_PYTHON=PATH   the interpreter (default: .venv, else the first python3)
#   OUT=DIR                 where the results go (default torchpace-gpu/): log.txt, tests.xml,
#                           clocks.csv, two folders with results.json.gz and report.md, and
#                           more.tar.gz; `torchpace report DIR` makes the page of one of them
#   LIMIT=SECONDS           of the stage
# Each step has a limit of its own; a failed step does not stop the next.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
limit_mib=56 # of the bundle, where 64 MiB may be taken along with the tree
usage="usage: scripts/gpu_check.sh --prepare | a [DEVICE] | b [DEVICE]"

prepare() {
  source "$root/scripts/setup.sh" --bundle
  step "bundle"
  rm -rf "$root/_bundle"
  cmake --install "$build" --component bundle --strip --prefix "$root/_bundle" >/dev/null
  torch_version "$(torch_folder "$python")" >"$root/_bundle/torch.txt"
  git -C "$root" describe --always --dirty >"$root/_bundle/commit.txt" 2>/dev/null || true
  if [[ -d "$TORCHPACE_CACHE/text/shakespeare" ]]; then
    mkdir -p "$root/_bundle/cache/text"
    cp -r "$TORCHPACE_CACHE/text/shakespeare" "$root/_bundle/cache/text/"
  fi
  local mib
  mib="$(du -sm "$root/_bundle" | cut -f1)"
  ((mib <= limit_mib)) || fail "_bundle is $mib MiB: expected at most $limit_mib"
  note "_bundle/ ($mib MiB) holds: $(cd "$root/_bundle/bin" && echo *)"
}

# Sets programs, and where they find LibTorch: in the interpreter, wherever the build had it.
find_programs() {
  local there torch folder folders
  [[ -n "${TORCHPACE_PYTHON:-}" || -x "$python" ]] || python="$(command -v python3)" ||
    fail "no python3 here" "TORCHPACE_PYTHON names the interpreter that has torch."
  torch="$(torch_folder "$python")"
  [[ -n "$torch" ]] || fail "$python has no torch" \
    "TORCHPACE_PYTHON names the interpreter that has it."
  there="$(torch_version "$torch")"
  if [[ -f "$root/_bundle/torch.txt" ]]; then
    [[ "$(<"$root/_bundle/torch.txt")" == "$there" ]] || fail \
      "the bundled build is for torch $(<"$root/_bundle/torch.txt"), but $python has torch $there" \
      "Make one for it: TORCHPACE_TORCH=$there scripts/gpu_check.sh --prepare"
    programs="$root/_bundle/bin"
    note "the bundle's commit: $(cat "$root/_bundle/commit.txt" 2>/dev/null || echo unknown)"
  elif [[ -x "$build/bin/torchpace" ]]; then
    programs="$build/bin"
  else
    fail "no build here: expected _bundle/ or $build/bin/torchpace" \
      "On a machine that can build: scripts/gpu_check.sh --prepare"
  fi
  folders="$torch/lib"
  for folder in "$torch"/../nvidia/*/lib; do # before the system's, which may hold another cuDNN
    [[ ! -d "$folder" ]] || folders+=":$(cd "$folder" && pwd)"
  done
  export LD_LIBRARY_PATH="$folders${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
  export TORCHPACE_PYTHON="$python" PYTHONUNBUFFERED=1
  note "$programs; torch $there of $python"
}

# Where compilers find CUDA: the driver's library is a mount that the linker does not look into.
find_cuda() {
  local nvcc
  nvcc="$(readlink -f "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")" || return 0
  export CUDA_HOME="${CUDA_HOME:-$(dirname "$(dirname "$nvcc")")}"
  local folders="$CUDA_HOME/lib64/stubs:/usr/local/nvidia/lib64"
  export LIBRARY_PATH="$folders${LIBRARY_PATH:+:$LIBRARY_PATH}"
}

# Runs a command under a limit of its own, and under that of the stage; not at all where less than
# `least` seconds are left.
least=15
try() { # name, seconds, command...
  local name="$1" seconds="$2" started=$SECONDS left=$((limit - SECONDS)) code=0
  shift 2
  if ((left < least)); then
    note "no time left for: $name"
    return
  fi
  ((seconds < left)) || seconds="$left"
  step "$name (at most $seconds s)"
  timeout -s INT -k 10 "$seconds" "$@" || code=$?
  note "$name: exit code $code after $((SECONDS - started)) s"
  # Skipped is a success only where there is no GPU to try.
  ((code == 0)) || [[ "$code" == 77 && "$device" == cpu ]] || failed+=("$name")
}

facts() {
  uname -r
  nproc
  sed -n 's/^PRETTY_NAME=//p' /etc/os-release
  g++ --version | head -1
  "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" --version | tail -1
  ldconfig -p | grep libcuda
  ls /usr/local/nvidia/lib64/libcuda*
  nvidia-smi --query-gpu=name,driver_version,persistence_mode,compute_mode --format=csv
  time "$python" -c 'import torch; print(torch.__version__, torch.version.cuda)'
}

# Whether a child may use the device after its parent imported what a worker imports.
forks() {
  PYTHONPATH="$root/python" "$python" - "$device" <<'PYTHON'
import os, sys, torch
from torchpace.aot import inductor

inductor.prepare()
torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
child = os.fork()
if child == 0:
    print(torch.zeros(1, device=sys.argv[1]))
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
PYTHON
}

# Where a package loads, runs and is destroyed in Python, each in a process of its own, with the
# native stack where one falls. They end at once, so that an exit code is of what the name says.
packages() {
  PYTHONPATH="$root/python" "$python" - "$device" "$more" <<'PYTHON'
import os, subprocess, sys, torch

device, folder = sys.argv[1:]
for target in {device, "cpu"}:
    x = torch.ones(8, 64, device=target)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()).to(target).eval()
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(
            torch.export.export(model, (x,)), package_path=f"{folder}/{target.split(':')[0]}.pt2"
        )
start = """
import os, pathlib, sys, torch
torch._C._set_print_stack_traces_on_fatal_signal(True)
device = torch.device(sys.argv[1])
index = -1 if device.index is None else device.index
path = f"{sys.argv[2]}/{device.type}.pt2"
"""
torchs = "f = torch._C._aoti.AOTIModelPackageLoader(path, 'model', True, 1, index)\n"
ours = "from torchpace.runtimes.aot import Loader\nf = Loader(pathlib.Path(path), device)\n"
run, destroy, end = "print(f.run([x])[0].sum())\n", "del f\n", "os._exit(0)"
fork = "pid = os.fork()\nif pid: os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0)\n"
draw = "x = torch.ones(8, 64, device=device)\n"
ways = [
    ("load", device, draw + torchs, {}),
    ("load and run", device, draw + torchs + run, {}),
    ("load, run and destroy", device, draw + torchs + run + destroy, {}),
    ("load, libstdc++ first", device, draw + torchs, {"LD_PRELOAD": "libstdc++.so.6"}),
    ("load and run on the CPU", "cpu", draw + torchs + run, {}),
    ("torchpace: load and run", device, draw + ours + run, {}),
    ("torchpace in a fork: load and run", device, fork + draw + ours + run, {}),
]
failed = False
for name, target, way, variables in ways:
    command = [sys.executable, "-c", start + way + end, target, folder]
    code = subprocess.run(command, env=os.environ | variables).returncode
    failed |= code != 0
    print(f"{name}: exit code {code}", flush=True)
sys.exit(failed)
PYTHON
}

# What sampling costs in Python, as null_bench says of C++: a sample of one step that does nothing.
null_steps() {
  PYTHONPATH="$root/python" "$python" - "$device" <<'PYTHON'
import contextlib, statistics, sys, types, torch
from torchpace import timing
from torchpace.case_phase import CASE_PHASES

device = torch.device(sys.argv[1])
torch.zeros(1, device=device)
for phase in ("inference", "latency"):
    workload = types.SimpleNamespace(
        phase=CASE_PHASES[phase], device=device, step=lambda index: None,
        turn=contextlib.nullcontext,
    )
    block = timing.measure(workload, 2000, 100, 1)
    print(f"null step in Python, {phase}: {statistics.median(block.step_ns):.0f} ns")
PYTHON
}

# Workers and programs on the device, but for the comparison, whose runtimes have steps here.
process_tests() {
  cd "$root/python" && TORCHPACE_PROGRAMS="$programs" \
    exec "$python" -m pytest -q -p no:cacheprovider -k "not every_runtime" tests/test_cuda_device.py
}

tests() {
  cd "$root" && exec "$programs/torch_tests" --gtest_brief=1 --gtest_output="xml:$out/tests.xml" \
    --gtest_filter='*Cuda*:Device.*'
}

# Eager rows have the optimizer that is fused too; steps on a GPU need no more threads.
compare() { # folder, arguments...
  local folder="$1"
  shift
  mkdir -p "$folder"
  exec "$programs/torchpace" compare --device "$device" --threads 2 --no-html \
    --set optimizer=adam-fused --output "$folder" --cache "$cache" "$@"
}

# A comparison whose files come back in one archive.
compare_more() { # name, arguments...
  local name="$1"
  shift
  trap 'tar -C "$more" -czf "$out/more.tar.gz" .' EXIT
  (compare "$more/$name" "$@")
}

stage_a() {
  try facts 20 bash -c 'set +e; facts'
  try forks 30 bash -c forks
  try tests 60 bash -c tests
  try "null steps, C++" 15 "$programs/null_bench" "--device=$device" \
    --benchmark_filter='null_(work|latency)' --benchmark_min_time=0.1
  try "null steps, Python" 20 bash -c null_steps
  try "what needs no artifacts" 60 bash -c 'compare "$@"' - "$out/eager" --preset smoke \
    --cases 'gptlite_*,dnn_wide_*' --runtimes py-eager,cpp-eager,cpp-cuda-graph \
    --invocations 1 --rounds 3
  try "what is compiled" 120 bash -c 'compare "$@"' - "$out/compiled" --preset smoke \
    --cases dnn_wide_inference,dnn_wide_train --set gemm=torch --compile-timeout 60 \
    --runtimes "py-eager,py-compile:reduce-overhead,$compiled" --invocations 1 --rounds 3
  try "packages in Python" 60 bash -c packages
  if "$python" -c 'import pytest' 2>/dev/null; then
    try "tests of processes" 100 bash -c process_tests
  else
    note "no pytest here: workers are not tested apart"
  fi
}

stage_b() {
  local paper=(--preset quick --invocations 4 --compile-timeout 90 --set gemm=torch)
  local gpt2="layers=12,width=768,heads=12,context=1024,batch=12,vocabulary=50304"
  if [[ "$device" == cpu ]]; then
    paper=(--preset smoke --invocations 4 --compile-timeout 90)
    gpt2="layers=2"
  fi
  try tests 20 bash -c tests
  try "what needs no artifacts" $((limit * 3 / 5)) bash -c 'compare "$@"' - "$out/eager" \
    --preset "$preset" \
    --cases gptlite_train,gptlite_inference,gptlite_latency,dnn_deep_train,dnn_wide_latency \
    --runtimes py-eager,cpp-eager,cpp-cuda-graph --max-seconds "$((limit * 5 / 9))"
  try "what is compiled" $((limit * 3 / 10)) bash -c 'compare "$@"' - "$out/compiled" \
    --preset "$preset" --cases gptlite_inference,gptlite_train \
    --set gemm=torch --compile-timeout 60 \
    --runtimes "py-eager,py-compile:reduce-overhead,$compiled" --invocations 4 \
    --max-seconds "$((limit / 7))"
  least=60
  try "GPTlite, paper size" 300 bash -c 'compare_more "$@"' - paper "${paper[@]}" \
    --cases "gptlite_train$large,gptlite_inference$large" --set tf32=0,1 \
    --runtimes "py-eager,py-compile:*,cpp-eager,cpp-cuda-graph,$compiled" --max-seconds 60
  try "GPTlite, paper size, bfloat16" 300 bash -c 'compare_more "$@"' - bfloat16 "${paper[@]}" \
    --cases "gptlite_train$large,gptlite_inference$large" --set autocast=bfloat16 \
    --runtimes "py-eager,py-compile:*,cpp-eager,cpp-cuda-graph,$compiled" --max-seconds 60
  try "GPT-2, 124M parameters" 300 bash -c 'compare_more "$@"' - gpt2 "${paper[@]}" \
    --cases gptlite_train --set "$gpt2,autocast=bfloat16" \
    --runtimes "py-eager,py-compile:default,cpp-eager,cpp-compiled-train" --max-seconds 60
  try "DNN, paper size" 300 bash -c 'compare_more "$@"' - dnn "${paper[@]}" \
    --cases "dnn_deep_train$large,dnn_wide_train$large" \
    --runtimes "py-eager,cpp-eager,cpp-cuda-graph" --max-seconds 60
}

stage="${1:-}"
device="${2:-cuda:0}"
case "$stage" in
  --prepare)
    prepare
    exit
    ;;
  a) limit="${LIMIT:-300}" ;;
  b) limit="${LIMIT:-450}" ;;
  *) fail "expected a stage, found '$stage'" "$usage" ;;
esac
(($# <= 2)) || fail "unknown argument '$3'" "$usage"

step "stage $stage on $device, at most $limit s"
find_programs
out="${OUT:-$root/torchpace-gpu}"
mkdir -p "$out"
out="$(cd "$out" && pwd)"
more="$(mktemp -d)" cache="$(mktemp -d)"
failed=()
compiled=py-aot,cpp-aot,cpp-cuda-graph:aot,cpp-compiled-train
preset=quick large=/size:paper
if [[ "$device" == cpu ]]; then
  preset=smoke large=/size:smoke
else
  find_cuda
fi
if [[ -d "$root/_bundle/cache/text/shakespeare" ]]; then
  mkdir -p "$cache/text"
  cp -r "$root/_bundle/cache/text/shakespeare" "$cache/text/"
fi
export out more cache device programs python root TORCHPACE_TEST_DEVICE="$device"
export -f facts forks packages null_steps tests process_tests compare compare_more

exec > >(tee "$out/log.txt") 2>&1
# A client for the whole stage: a driver without persistence lets the GPU sleep between processes.
watch=""
if [[ "$device" != cpu ]]; then
  nvidia-smi --format=csv -l 1 --query-gpu="timestamp,clocks.sm,clocks.mem,pstate,power.draw,\
temperature.gpu,utilization.gpu,memory.used" >"$out/clocks.csv" &
  watch=$!
fi
finish() {
  [[ -z "$watch" ]] || kill "$watch" 2>/dev/null || true
  local results
  for results in "$out"/*/results.json; do
    [[ ! -f "$results" ]] || gzip -f "$results"
  done
  rm -rf "$more" "$cache"
}
trap finish EXIT
"stage_$stage"
if ((${#failed[@]} == 0)); then
  step "all steps passed after $SECONDS s; results in $out"
else
  step "results in $out; these steps failed: $(IFS=,; echo "${failed[*]}")"
  exit 1
fi
