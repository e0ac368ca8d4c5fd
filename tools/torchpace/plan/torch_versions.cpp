#include "plan/torch_versions.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "support/error.hpp"
#include "support/files.hpp"
#include "support/process.hpp"

namespace torchpace::cli {
namespace {

namespace fs = std::filesystem;

constexpr double kSetupLimit_s = 4 * 3600.0;  // downloads gigabytes and compiles
constexpr double kAskLimit_s = 60;
constexpr int kOldest[] = {2, 11};

/// Of an interpreter, without importing torch; empty if it has none.
std::string torch_version(const std::string& python) {
  const std::string code =
      "import importlib.metadata as m\n"
      "try: print(m.version('torch').split('+')[0])\n"
      "except m.PackageNotFoundError: pass";
  try {
    auto answer = run_to_end({{python, "-c", code}, {}}, kAskLimit_s);
    answer.erase(answer.find_last_not_of(" \r\n") + 1);
    return answer;
  } catch (const ProcessError&) {
    return "";
  }
}

/// What scripts/common.sh calls them; `suffix` is empty for the pinned version.
Installation below(const fs::path& tree, const std::string& suffix) {
  Installation found;
  found.package = tree / "python";
  found.python = tree / (".venv" + suffix) / "bin/python";
  found.worker = tree / ("build/release" + suffix) / "bin/torchpace_worker";
  return found;
}

bool is_whole(const Installation& found, const std::string& version) {
  return is_file(found.worker) && is_file(found.python) && torch_version(found.python) == version;
}

void set_up(const fs::path& tree, const std::string& version,
            const std::function<void(const std::string&)>& log) {
  const auto script = tree / "scripts/setup.sh";
  // Empty: a virtual environment of its own, not the interpreter of another version.
  Process process({{"sh", "-c", "exec \"$0\" 2>&1", script.string()},
                   {{"TORCHPACE_TORCH", version}, {"TORCHPACE_PYTHON", ""}}});
  process.close_input();
  const auto deadline = in_seconds(kSetupLimit_s);
  std::string last;
  try {
    for (;;) {
      const auto line = process.read_line(deadline);
      if (line.find_first_not_of(" \t") == std::string::npos) continue;
      last = line.substr(line.find_first_not_of(" \t"));
      log(last);
    }
  } catch (const ProcessError&) {
    // The end of its output; how it ended is asked below.
  }
  const auto ending = process.wait(deadline);
  if (ending.empty()) return;
  throw Error(fmt::format("--torch {}: {} failed ({}): {}; run TORCHPACE_TORCH={} {} to see why",
                          version, script.string(), ending, last, version, script.string()));
}

}  // namespace

void check_versions(const std::vector<std::string>& versions) {
  for (const auto& version : versions) {
    int major = 0, minor = 0, patch = 0, used = 0;
    const bool is_version =
        std::sscanf(version.c_str(), "%d.%d.%d%n", &major, &minor, &patch, &used) == 3 &&
        static_cast<size_t>(used) == version.size();
    if (!is_version) {
      throw Error(
          fmt::format("--torch: expected versions such as 2.11.0,2.15.0, found '{}'", version));
    }
    if (std::pair(major, minor) < std::pair(kOldest[0], kOldest[1])) {
      throw Error(fmt::format(
          "--torch: expected 2.11 or later, found {}: torchpace's headers are C++20 and use the "
          "device allocator of c10, which an older LibTorch lacks or does not compile with",
          version));
    }
    if (std::count(versions.begin(), versions.end(), version) > 1) {
      throw Error(fmt::format("--torch: expected each version once, found {} twice", version));
    }
  }
}

Installation installation_of_version(const std::string& version, const Installation& current,
                                     const std::function<void(const std::string&)>& log) {
  if (!current.worker.empty() && torch_version(current.python) == version) return current;
  const auto tree = current.package.parent_path();
  if (current.package.empty() || !is_file(tree / "scripts/setup.sh")) {
    throw Error(fmt::format(
        "--torch {}: expected the source tree of torchpace, whose scripts/setup.sh builds for "
        "another version, found none; run the torchpace of a source tree",
        version));
  }
  // Also where both are there: it makes a build up to date that is older than the sources.
  set_up(tree, version, log);
  for (const auto& suffix : {"-" + version, std::string()}) {
    if (const auto found = below(tree, suffix); is_whole(found, version)) return found;
  }
  throw Error(
      fmt::format("--torch {}: expected {} and its worker after scripts/setup.sh, found "
                  "none; run TORCHPACE_TORCH={} scripts/setup.sh to see why",
                  version, below(tree, "-" + version).python, version));
}

}  // namespace torchpace::cli
