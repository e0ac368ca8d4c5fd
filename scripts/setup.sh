#!/usr/bin/env bash
# Makes everything ready: Debian packages, Python packages, the text, the programs. Does only what
# is missing.
#
#   scripts/setup.sh [--tests]        --tests: build the tests too (--bundle: those that
#                                     gpu_check.sh takes along)
#
#   TORCHPACE_TORCH=2.15.0            another version of torch, in its own .venv-2.15.0 and
#                                     build/release-2.15.0
#   TORCHPACE_PYTHON=/path/to/python  use this interpreter, which has torch and numpy; install
#                                     nothing into it
#   TORCHPACE_CACHE=DIR               where the text and exported cases are kept
#                                     (default ~/.cache/torchpace)
#   FETCHCONTENT_SOURCE_DIR_FMT=DIR   build fmt (BENCHMARK, GOOGLETEST, CLI11, NLOHMANN_JSON,
#                                     RAPIDCHECK) from its source
#   TORCHPACE_JOBS=N                  compile jobs (default: cores, but 2 GB of memory for each)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

target=torchpace_programs
case "${1:-}" in
  "") ;;
  --tests) target=all ;;
  --bundle) target=torchpace_bundled ;;
  *) fail "unknown argument '$1'" "usage: scripts/setup.sh [--tests | --bundle]" ;;
esac

install_debian_packages() {
  local wanted=(g++ cmake ninja-build ccache googletest libgtest-dev libbenchmark-dev
    nlohmann-json3-dev libcli11-dev libfmt-dev librapidcheck-dev) missing=() package
  if [[ -z "${TORCHPACE_PYTHON:-}" ]] && ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    wanted+=(python3 python3-venv)
  fi
  if ! command -v dpkg-query >/dev/null; then
    note "no Debian here: taking the compiler and libraries that there are"
    return
  fi
  for package in "${wanted[@]}"; do
    if [[ "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" != \
      "install ok installed" ]]; then
      missing+=("$package")
    fi
  done
  if ((${#missing[@]} == 0)); then
    note "all there"
    return
  fi

  note "missing: ${missing[*]}"
  local as_root=()
  if ((EUID != 0)); then
    if command -v sudo >/dev/null && { [[ -t 0 ]] || sudo -n true 2>/dev/null; }; then
      as_root=(sudo)
    else
      note "Neither root nor sudo here. Ask for: apt-get install ${missing[*]}"
      note "Going on without the parts that need them."
      return
    fi
  fi
  if ! { "${as_root[@]}" apt-get update -q && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -q -y --no-install-recommends "${missing[@]}"; } >&2; then
    note "apt-get could not install them. By hand: apt-get install ${missing[*]}"
    note "Going on without the parts that need them."
  fi
}

check_tools() {
  local tool missing=()
  for tool in c++ cmake ninja; do command -v "$tool" >/dev/null || missing+=("$tool"); done
  ((${#missing[@]} == 0)) || fail "cannot build without: ${missing[*]}" \
    "Install them (Debian: apt-get install g++ cmake ninja-build), then call this script again," \
    "or bundle a build from another machine: scripts/gpu_check.sh --prepare"
}

install_python_packages() {
  local name_it="TORCHPACE_PYTHON=/path/to/python"
  if [[ -n "${TORCHPACE_PYTHON:-}" ]]; then
    local missing advice="Name an interpreter that can import torch, or unset TORCHPACE_PYTHON"
    advice+=" to have one made in .venv."
    [[ -n "$(torch_folder "$python")" ]] || fail "TORCHPACE_PYTHON=$TORCHPACE_PYTHON has no torch" \
      "$advice"
    missing="$("$python" -c 'import importlib.util as u
wanted = ("numpy", "jinja2", "matplotlib", "pytest", "jsonschema")
print(*[m for m in wanted if not u.find_spec(m)])')"
    [[ " $missing " != *" numpy "* ]] ||
      fail "TORCHPACE_PYTHON=$TORCHPACE_PYTHON has no numpy" "Install it there."
    note "using $python; nothing is installed into it"
    [[ -z "$missing" ]] || note "it lacks: $missing (HTML, pictures or tests)"
    return
  fi

  local requirements stamp hash made=""
  requirements="$(sed "s/^torch==.*/torch==${TORCHPACE_TORCH:-$pinned_torch}/" \
    "$root/python/requirements.txt")"
  stamp="$venv/torchpace-requirements.sha256"
  hash="$(sha256sum <<<"$requirements")"
  if [[ -f "$stamp" && "$(<"$stamp")" == "$hash" && -x "$python" ]]; then
    note "up to date: $venv"
    return
  fi
  note "into $venv (torch is about 3 GB on disk)"
  if [[ ! -x "$python" ]]; then
    made="$venv"
    python3 -m venv "$venv" >&2 || fail "cannot make a virtual environment in $venv" \
      "Debian: apt-get install python3-venv. Or name an interpreter that has torch: $name_it"
  fi
  # A file, not a pipe: pip may read it twice.
  printf '%s\n' "$requirements" >"$venv/requirements.txt"
  if "$venv/bin/python" -m pip install --disable-pip-version-check \
    -r "$venv/requirements.txt" >&2; then
    printf '%s\n' "$hash" >"$stamp"
    return
  fi
  # Without torch it would only be in the way of an interpreter that has it.
  [[ -z "$made" ]] || rm -rf "$made"
  if [[ -z "$(torch_folder "$python")" && -n "$(torch_folder python3)" && -z "$suffix" ]]; then
    python="$(command -v python3)"
    note "pip could not install them; using $python," \
      "which has torch $(torch_version "$(torch_folder python3)")"
  else
    fail "pip could not install the packages named above" \
      "Without a package index, name an interpreter that has torch and numpy: $name_it"
  fi
}

prepare_text() {
  if [[ -f "$TORCHPACE_CACHE/text/shakespeare/manifest.json" ]]; then
    note "there: $TORCHPACE_CACHE/text/shakespeare"
  else
    PYTHONPATH="$root/python${PYTHONPATH:+:$PYTHONPATH}" \
      "$python" -m torchpace.data.text --cache "$TORCHPACE_CACHE" >&2 ||
      fail "the text could not be prepared" \
        "See the message above; TORCHPACE_CACHE=DIR names another folder."
  fi
}

build_programs() {
  local log="$build/configure.log" given=() name
  for name in $(compgen -e FETCHCONTENT_SOURCE_DIR_); do given+=(-D "$name=${!name}"); done
  mkdir -p "$build"
  (cd "$root" && cmake --preset release -B "$build" -D "TORCHPACE_PYTHON=$python" \
    "${given[@]}") >"$log" 2>&1 || {
    cat "$log" >&2
    fail "CMake could not configure $build" "The message above says what is missing."
  }
  sed -n 's/^-- torchpace: /   /p' "$log" >&2
  cmake --build "$build" --target "$target" --parallel "$(jobs)" >&2 ||
    fail "the build in $build failed" \
      "The first error above is the cause. Killed? Set TORCHPACE_JOBS=1: a unit takes 2 GB."
}

step "1/4 Debian packages"
install_debian_packages
check_tools
step "2/4 Python packages"
install_python_packages
step "3/4 Text"
prepare_text
step "4/4 Programs (the first build takes minutes)"
build_programs
