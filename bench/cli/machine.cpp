#include "machine.hpp"

#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>
#include <string>

namespace torchpace::cli {
namespace {

namespace fs = std::filesystem;
constexpr double kNoLimit = std::numeric_limits<double>::infinity();

std::string first_line(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

/// Our own cgroup's folder for a controller: version 2's, or version 1's under its name.
fs::path cgroup_folder(const std::string& controller) {
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const auto controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const auto path = line.substr(second + 2);
    if (controllers == ",,") {
      if (fs::exists("/sys/fs/cgroup/cgroup.controllers")) return fs::path("/sys/fs/cgroup") / path;
    } else if (controllers.find("," + controller + ",") != std::string::npos) {
      return fs::path("/sys/fs/cgroup") / controller / path;
    }
  }
  return "/sys/fs/cgroup";
}

/// The least of a limit over our cgroup and those above it: any of them holds.
template <class Read>
double least_upwards(const std::string& controller, const Read& read) {
  double least = kNoLimit;
  for (auto folder = cgroup_folder(controller);; folder = folder.parent_path()) {
    least = std::min(least, read(folder));
    if (folder == "/sys/fs/cgroup" || !folder.has_relative_path()) return least;
  }
}

double number(const std::string& text) {
  try {
    return std::stod(text);
  } catch (const std::exception&) {
    return kNoLimit;  // "max", or no such file
  }
}

double quota_of(const fs::path& folder) {
  const auto line = first_line(folder / "cpu.max");  // "200000 100000" or "max 100000"
  const auto space = line.find(' ');
  if (space != std::string::npos) return number(line.substr(0, space)) / number(line.substr(space + 1));
  const double quota = number(first_line(folder / "cpu.cfs_quota_us"));
  return quota > 0 ? quota / number(first_line(folder / "cpu.cfs_period_us")) : kNoLimit;
}

double memory_limit_of(const fs::path& folder) {
  for (const char* name : {"memory.max", "memory.limit_in_bytes"}) {
    const double bytes = number(first_line(folder / name));
    if (bytes < 1e18) return bytes;  // version 1 says "none" with a huge number
  }
  return kNoLimit;
}

}  // namespace

int usable_cores() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof mask, &mask) != 0) return 1;
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &mask)) continue;
    const auto siblings =
        first_line(fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu));
    cores.insert(siblings.empty() ? std::to_string(cpu) : siblings);
  }
  const double quota = least_upwards("cpu", quota_of);
  const auto count = std::min(static_cast<double>(cores.size()), std::floor(quota));
  return std::max(1, static_cast<int>(count));
}

double available_bytes() {
  std::ifstream file("/proc/meminfo");
  double available = kNoLimit;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("MemAvailable:")) available = 1024 * number(line.substr(13));
  }
  return std::min(available, least_upwards("memory", memory_limit_of));
}

bool has_nvidia_device() { return access("/dev/nvidia0", F_OK) == 0 || access("/dev/dxg", F_OK) == 0; }

}  // namespace torchpace::cli
