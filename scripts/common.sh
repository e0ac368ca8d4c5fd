# shellcheck shell=bash
# shellcheck disable=SC2034  # used by the scripts that read this one
# Read by the other scripts: folders, the interpreter, and how they speak.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
pinned_torch="$(sed -n 's/^torch==//p' "$root/python/requirements.txt")"

# Another version of torch gets folders of its own, so the two never mix.
suffix=""
if [[ -n "${TORCHPACE_TORCH:-}" && "$TORCHPACE_TORCH" != "$pinned_torch" ]]; then
  suffix="-$TORCHPACE_TORCH"
fi
venv="$root/.venv$suffix"
build="$root/build/release$suffix"
python="${TORCHPACE_PYTHON:-$venv/bin/python}"
export TORCHPACE_CACHE="${TORCHPACE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/torchpace}"

step() { printf '\n== %s\n' "$*" >&2; }
note() { printf '   %s\n' "$*" >&2; }
fail() {
  printf '\nFAILED: %s\n' "$1" >&2
  shift
  for line in "$@"; do printf '   %s\n' "$line" >&2; done
  exit 1
}

# The torch folder of an interpreter, found without importing torch; empty if it has none.
torch_folder() {
  "$1" -c 'import importlib.util as u
s = u.find_spec("torch")
print(s.submodule_search_locations[0] if s and s.origin else "")' 2>/dev/null || true
}

torch_version() { # of a torch folder, without the part after "+"
  sed -n "s/^__version__ = '\([0-9.]*\).*/\1/p" "$1/version.py"
}

# Compile jobs: a unit that includes LibTorch takes up to 2 GB.
jobs() {
  local cores available
  cores="$(nproc)"
  available="$(awk '/^MemAvailable/ {print int($2 / 2000000)}' /proc/meminfo)"
  echo "${TORCHPACE_JOBS:-$((available < 1 ? 1 : available < cores ? available : cores))}"
}
