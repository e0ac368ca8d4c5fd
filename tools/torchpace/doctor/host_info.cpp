#include "doctor/host_info.hpp"

#include <fmt/format.h>
#include <gnu/libc-version.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <set>
#include <sstream>
#include <vector>

#include "support/process.hpp"

namespace torchpace::cli {
namespace {

namespace fs = std::filesystem;

constexpr double kNoLimit = std::numeric_limits<double>::infinity();
constexpr double kGpuLimitSeconds = 20;

/// Variables with these beginnings change how fast a worker runs.
constexpr const char* kPrefixes[] = {"OMP_",
                                     "GOMP_",
                                     "KMP_",
                                     "MKL_",
                                     "OPENBLAS_",
                                     "BLIS_",
                                     "DNNL_",
                                     "ONEDNN_",
                                     "MALLOC_",
                                     "GLIBC_TUNABLES",
                                     "LD_PRELOAD",
                                     "PYTHONMALLOC",
                                     "JEMALLOC",
                                     "MIMALLOC_",
                                     "TCMALLOC_",
                                     "ATEN_",
                                     "TORCH_",
                                     "PYTORCH_",
                                     "CUBLAS_",
                                     "CUDA_VISIBLE_DEVICES",
                                     "CUDA_LAUNCH_BLOCKING",
                                     "CUDA_MODULE_LOADING",
                                     "NVIDIA_TF32_OVERRIDE"};

std::string trimmed(const std::string& text) {
  const auto first = text.find_first_not_of(" \t\r\n\"");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t\r\n\"") - first + 1);
}

double number(const std::string& text) {
  try {
    return std::stod(text);
  } catch (const std::exception&) {
    return kUnknown;
  }
}

/// Null where the text is empty.
Json text_or_null(const std::string& text) { return text.empty() ? Json() : Json(text); }

/// Null where the number is not known or not finite.
Json number_or_null(double value) {
  if (!std::isfinite(value)) return {};
  const bool is_whole = value == std::floor(value) && std::abs(value) < 0x1p53;
  return is_whole ? Json(static_cast<long long>(value)) : Json(value);
}

/// Files below the root.
class Tree {
 public:
  explicit Tree(fs::path root) : root_(std::move(root)) {}

  fs::path at(const fs::path& path) const { return root_ / path.relative_path(); }

  std::string first_line(const fs::path& path) const {
    std::ifstream file(at(path));
    std::string line;
    std::getline(file, line);
    return trimmed(line);
  }

  /// The value after `key` and the separator, of the first line that starts so.
  std::string field(const fs::path& path, const std::string& key, char separator) const {
    std::ifstream file(at(path));
    for (std::string line; std::getline(file, line);) {
      const auto end = line.find(separator);
      if (end != std::string::npos && trimmed(line.substr(0, end)) == key) {
        return trimmed(line.substr(end + 1));
      }
    }
    return "";
  }

  /// A line of /proc/meminfo in bytes.
  double memory(const std::string& key) const {
    return 1024 * number(field("/proc/meminfo", key, ':'));
  }

 private:
  fs::path root_;
};

std::vector<int> cpus_of_list(const std::string& list) {
  std::vector<int> cpus;
  std::istringstream parts(list);
  for (std::string part; std::getline(parts, part, ',');) {
    const auto dash = part.find('-');
    const double first = number(part);
    const double last = dash == std::string::npos ? first : number(part.substr(dash + 1));
    for (double cpu = first; cpu <= last; ++cpu) cpus.push_back(static_cast<int>(cpu));
  }
  return cpus;
}

/// Logical CPUs, grouped by the physical core that they share.
struct Topology {
  std::set<std::string> cores, cores_in_affinity, sockets;
  int logical = 0;
};

Topology topology(const Tree& tree, const std::string& affinity) {
  Topology result;
  const auto mask = cpus_of_list(affinity);
  for (const int cpu : cpus_of_list(tree.first_line("/sys/devices/system/cpu/online"))) {
    const auto folder = fs::path("/sys/devices/system/cpu") / fmt::format("cpu{}/topology", cpu);
    auto core = tree.first_line(folder / "thread_siblings_list");
    if (core.empty()) core = std::to_string(cpu);
    ++result.logical;
    result.cores.insert(core);
    if (std::find(mask.begin(), mask.end(), cpu) != mask.end())
      result.cores_in_affinity.insert(core);
    if (const auto socket = tree.first_line(folder / "physical_package_id"); !socket.empty()) {
      result.sockets.insert(socket);
    }
  }
  return result;
}

/// Our cgroup's folder for a controller: version 2's, or version 1's under the controller's name.
fs::path cgroup_folder(const Tree& tree, const std::string& controller) {
  const fs::path top = "/sys/fs/cgroup";
  std::ifstream file(tree.at("/proc/self/cgroup"));
  for (std::string line; std::getline(file, line);) {
    const auto first = line.find(':');
    const auto second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const auto names = "," + line.substr(first + 1, second - first - 1) + ",";
    const auto below = fs::path(line.substr(second + 1)).relative_path();
    if (names == ",," && fs::exists(tree.at(top / "cgroup.controllers"))) return top / below;
    if (names.find("," + controller + ",") != std::string::npos) return top / controller / below;
  }
  return top;
}

/// The least limit of our cgroup and those above it, since each of them holds. In a container the
/// path may name folders that only the host sees: they count as no limit.
template <class Read>
double least_upwards(const Tree& tree, const std::string& controller, const Read& read) {
  double least = kNoLimit;
  for (auto folder = cgroup_folder(tree, controller); folder.has_relative_path();
       folder = folder.parent_path()) {
    const double limit = read(folder);
    if (limit < least) least = limit;
    if (folder == "/sys/fs/cgroup") break;
  }
  return least;
}

double cgroup_cpus(const Tree& tree) {
  return least_upwards(tree, "cpu", [&](const fs::path& folder) {
    std::istringstream words(tree.first_line(folder / "cpu.max"));  // "150000 100000", "max 100000"
    std::string quota, period;
    if (words >> quota >> period) return number(quota) / number(period);
    const double quota_us = number(tree.first_line(folder / "cpu.cfs_quota_us"));
    return quota_us > 0 ? quota_us / number(tree.first_line(folder / "cpu.cfs_period_us"))
                        : kUnknown;
  });
}

double cgroup_memory(const Tree& tree) {
  return least_upwards(tree, "memory", [&](const fs::path& folder) {
    double least = kUnknown;
    for (const char* name : {"memory.max", "memory.limit_in_bytes"}) {
      const double bytes = number(tree.first_line(folder / name));
      if (bytes < 1e18) least = bytes;  // version 1 writes "none" as a huge number
    }
    return least;
  });
}

/// The governor of the first CPU, and `mixed` where others have another.
std::string governor(const Tree& tree) {
  std::set<std::string> seen;
  for (const int cpu : cpus_of_list(tree.first_line("/sys/devices/system/cpu/online"))) {
    const auto path = fmt::format("/sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor", cpu);
    if (const auto name = tree.first_line(path); !name.empty()) seen.insert(name);
  }
  if (seen.size() > 1) return "mixed";
  return seen.empty() ? "" : *seen.begin();
}

/// Whether the clock may rise above its nominal value; null where the kernel does not say.
Json turbo(const Tree& tree) {
  const auto off = tree.first_line("/sys/devices/system/cpu/intel_pstate/no_turbo");
  if (!off.empty()) return off == "0";
  const auto on = tree.first_line("/sys/devices/system/cpu/cpufreq/boost");
  return on.empty() ? Json() : Json(on == "1");
}

/// The name in brackets of a choice such as `always [madvise] never`.
std::string chosen(const std::string& line) {
  const auto open = line.find('[');
  const auto close = line.find(']', open);
  return open == std::string::npos || close == std::string::npos
             ? ""
             : line.substr(open + 1, close - open - 1);
}

/// The hypervisor's name where there is one, `yes` where only its flag is seen, else null.
Json virtual_machine(const Tree& tree) {
  const auto type = tree.first_line("/sys/hypervisor/type");
  if (!type.empty()) return type;
  // x86 has a flag for it; on other processors the maker's name of the machine does.
  const auto flags = fmt::format(" {} ", tree.field("/proc/cpuinfo", "flags", ':'));
  const bool flagged = flags.find(" hypervisor ") != std::string::npos;
  const auto vendor = tree.first_line("/sys/class/dmi/id/sys_vendor");
  for (const char* name :
       {"QEMU", "VMware", "Xen", "innotek", "Amazon EC2", "Google", "Microsoft"}) {
    if (flagged && vendor.find(name) != std::string::npos) return vendor;
  }
  return flagged ? Json("yes") : Json();
}

Json load_average(const Tree& tree) {
  std::istringstream words(tree.first_line("/proc/loadavg"));
  Json loads = Json::array();
  double load = 0;
  while (loads.size() < 3 && words >> load) loads.push_back(load);
  return loads;
}

Json address_randomization(const Tree& tree) {
  const auto value = tree.first_line("/proc/sys/kernel/randomize_va_space");
  if (value.empty()) return {};
  return value == "0" ? "off" : value == "1" ? "stack and libraries" : "full";
}

Json relevant(const std::map<std::string, std::string>& variables) {
  Json found = Json::object();
  for (const auto& [name, value] : variables) {
    const auto begins = [&name = name](const char* prefix) { return name.starts_with(prefix); };
    if (std::any_of(std::begin(kPrefixes), std::end(kPrefixes), begins)) found[name] = value;
  }
  return found;
}

std::string cpu_name(const Tree& tree) {
  for (const char* key : {"model name", "Model", "Processor", "cpu"}) {
    if (const auto name = tree.field("/proc/cpuinfo", key, ':'); !name.empty()) return name;
  }
  return "";
}

Json gpus(const std::string& program) {
  if (program.empty()) return Json::array();
  // The older name is refused by some newer drivers, the newer one by drivers before 535.
  for (const char* throttle : {"clocks_event_reasons.active", "clocks_throttle_reasons.active"}) {
    const auto query = fmt::format("--query-gpu={}", fmt::format(kGpuFields, throttle));
    try {
      return parse_gpus(
          run_to_end({{program, query, "--format=csv,noheader,nounits"}, {}}, kGpuLimitSeconds));
    } catch (const ProcessError&) {  // another name, or no driver and no GPU
    }
  }
  return Json::array();
}

}  // namespace

HostSources HostSources::of_this_machine() {
  HostSources sources;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const auto equals = text.find('=');
    if (equals != std::string::npos)
      sources.variables[text.substr(0, equals)] = text.substr(equals + 1);
  }
  return sources;
}

Json host_environment(const HostSources& sources) {
  const Tree tree(sources.root);
  const auto affinity = tree.field("/proc/self/status", "Cpus_allowed_list", ':');
  const auto cores = topology(tree, affinity);
  Json host;
  host["os"] = text_or_null(tree.field("/etc/os-release", "PRETTY_NAME", '='));
  host["kernel"] = text_or_null(tree.first_line("/proc/sys/kernel/osrelease"));
  host["cpu"] = text_or_null(cpu_name(tree));
  host["microcode"] = text_or_null(tree.field("/proc/cpuinfo", "microcode", ':'));
  host["sockets"] = cores.sockets.empty() ? Json() : Json(cores.sockets.size());
  host["cores"] = cores.cores.empty() ? Json() : Json(cores.cores.size());
  host["logical_cpus"] = cores.logical == 0 ? Json() : Json(cores.logical);
  host["smt"] = static_cast<size_t>(cores.logical) > cores.cores.size();
  const int nodes = count_of_list(tree.first_line("/sys/devices/system/node/online"));
  host["numa_nodes"] = std::max(1, nodes);
  host["affinity"] = text_or_null(affinity);
  host["affinity_cpus"] = affinity.empty() ? Json() : Json(count_of_list(affinity));
  host["affinity_cores"] =
      cores.cores_in_affinity.empty() ? Json() : Json(cores.cores_in_affinity.size());
  host["cgroup_cpus"] = number_or_null(cgroup_cpus(tree));
  host["cgroup_memory_bytes"] = number_or_null(cgroup_memory(tree));
  host["memory_bytes"] = number_or_null(tree.memory("MemTotal"));
  host["memory_available_bytes"] = number_or_null(tree.memory("MemAvailable"));
  host["swap_bytes"] = number_or_null(tree.memory("SwapTotal"));
  host["swap_used_bytes"] = number_or_null(tree.memory("SwapTotal") - tree.memory("SwapFree"));
  host["governor"] = text_or_null(governor(tree));
  host["turbo"] = turbo(tree);
  host["load_average"] = load_average(tree);
  host["thp"] =
      text_or_null(chosen(tree.first_line("/sys/kernel/mm/transparent_hugepage/enabled")));
  host["aslr"] = address_randomization(tree);
  host["virtual_machine"] = virtual_machine(tree);
  host["clocksource"] = text_or_null(
      tree.first_line("/sys/devices/system/clocksource/clocksource0/current_clocksource"));
  host["glibc"] = gnu_get_libc_version();
  host["variables"] = relevant(sources.variables);
  host["gpus"] = gpus(sources.nvidia_smi);
  return host;
}

Json parse_gpus(const std::string& csv) {
  static constexpr const char* kKeys[] = {
      "name",          "driver",  "memory_bytes",  "clock_mhz",   "clock_max_mhz",      "throttle",
      "temperature_c", "power_w", "power_limit_w", "persistence", "utilisation_percent"};
  Json list = Json::array();
  std::istringstream lines(csv);
  for (std::string line; std::getline(lines, line);) {
    if (trimmed(line).empty()) continue;
    Json gpu = Json::object();
    std::istringstream fields(line);
    for (const std::string key : kKeys) {
      std::string text;
      std::getline(fields, text, ',');
      text = trimmed(text);
      const bool is_known = !text.empty() && text.front() != '[' && text != "N/A";
      const bool is_text =
          key == "name" || key == "driver" || key == "throttle" || key == "persistence";
      if (!is_known) {
        gpu[key] = nullptr;
      } else if (is_text) {
        gpu[key] = text;
      } else {
        gpu[key] = number_or_null(number(text) * (key == "memory_bytes" ? 0x1p20 : 1));
      }
    }
    list.push_back(gpu);
  }
  return list;
}

ProcessorTimes processor_times(const fs::path& root) {
  // cpu user nice system idle iowait irq softirq steal guest guest_nice; guests are part of user.
  std::istringstream words(Tree(root).first_line("/proc/stat"));
  std::string name;
  words >> name;
  ProcessorTimes times;
  double ticks = 0;
  for (int i = 0; i < 8 && words >> ticks; ++i) {
    times.total += ticks;
    if (i == 3 || i == 4) times.idle += ticks;
    if (i == 7) times.steal = ticks;
  }
  return times;
}

int count_of_list(const std::string& list) { return static_cast<int>(cpus_of_list(list).size()); }

}  // namespace torchpace::cli
