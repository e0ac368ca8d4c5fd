// What the doctor makes of the facts.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "commands/doctor.hpp"
#include "doctor/usable_resources.hpp"
#include "report/number_format.hpp"

namespace torchpace::cli {
namespace {

constexpr double kLoadNoted = 0.05;  // of the cores
constexpr double kLoadWarned = 0.3;
constexpr double kStealNoted = 0.001;  // of processor time
constexpr double kStealWarned = 0.01;
constexpr double kDiskWarned =
    2e9;  // bytes; the large cases' weights and golden values take that much
constexpr double kMemoryWarned = 2e9;
constexpr double kClockCostNoted_ns = 200;
constexpr double kClockResolutionNoted_ns = 1000;

double number(const Json& host, const char* key) { return host_number(host, key, kUnknown); }

std::string text(const Json& host, const char* key) {
  const auto found = host.find(key);
  return found != host.end() && found->is_string() ? found->get<std::string>() : "";
}

std::string count(double value) { return std::isnan(value) ? "n/a" : fmt::format("{:g}", value); }

Finding processor(const Json& host) {
  const double sockets = number(host, "sockets");
  auto found = fmt::format("{}: {} cores, {} logical CPUs",
                           text(host, "cpu").empty() ? "unknown" : text(host, "cpu"),
                           count(number(host, "cores")), count(number(host, "logical_cpus")));
  if (sockets > 1 || number(host, "numa_nodes") > 1) {
    return {"processor", "note",
            fmt::format("{}, {} sockets, {} NUMA nodes: memory of another node is slower", found,
                        count(sockets), count(number(host, "numa_nodes"))),
            "keep all on one node: numactl --cpunodebind=0 --membind=0 torchpace ..."};
  }
  return {"processor", "ok", found, ""};
}

Finding threads(const Json& host) {
  const double cores = granted_cores(host);
  const double quota = number(host, "cgroup_cpus");
  const double all = number(host, "cores");
  if (std::isnan(cores))
    return {"threads", "note", "number of cores is not known", "choose --threads"};
  const auto best = std::max(1.0, std::floor(cores));
  const auto limit = fmt::format("--threads {:g} at most", best);
  if (!std::isnan(quota) && (quota < number(host, "affinity_cpus") || quota != std::floor(quota))) {
    return {"threads", "warn",
            fmt::format(
                "the cgroup grants {} CPUs: more threads are halted for the rest of each period",
                show_number(quota)),
            limit};
  }
  if (cores < all) {
    return {"threads", "note",
            fmt::format("the affinity mask leaves {:g} of {:g} cores (CPUs {})", cores, all,
                        text(host, "affinity")),
            limit};
  }
  const bool smt = host.value("smt", Json(false)) == Json(true);
  return {"threads", "ok",
          fmt::format("{:g} cores can be used{}", cores,
                      smt ? ": two logical CPUs of a core share its units, so count cores" : ""),
          smt ? limit : ""};
}

Finding governor(const Json& host) {
  const auto name = text(host, "governor");
  if (name == "performance")
    return {"governor", "ok", "performance: the clock does not fall when idle", ""};
  if (name.empty()) {
    return {"governor", "note", "the kernel shows none: whoever runs the machine sets the clock",
            "trust intervals of several invocations, not single runs"};
  }
  return {"governor", "warn",
          fmt::format("{}: the clock follows the load, so short runs are slower", name),
          "sudo cpupower frequency-set -g performance"};
}

Finding turbo(const Json& host) {
  const auto state = host.value("turbo", Json());
  if (state == Json(true)) {
    return {
        "turbo", "note", "on: the clock depends on heat and on how many cores work",
        "for steadier numbers: echo 1 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo, or "
        "echo 0 | sudo tee /sys/devices/system/cpu/cpufreq/boost"};
  }
  if (state == Json(false)) return {"turbo", "ok", "off: the clock stays at its nominal value", ""};
  return {"turbo", "note", "not known: the kernel does not say whether the clock may rise", ""};
}

/// What others do now; the load average, which also remembers what is over, where that is not
/// known.
Finding load(const Json& host, const MachineTrial& trial) {
  const auto loads = host.value("load_average", Json::array());
  const double cores = number(host, "logical_cpus");
  const bool known = !loads.empty() && loads[0].is_number();
  const double last = known ? loads[0].get<double>() : kUnknown;
  if (!known && std::isnan(trial.busy_share)) {
    return {"load", "note", "load average is not known", ""};
  }
  const bool watched = !std::isnan(trial.busy_share);
  const double share = watched ? trial.busy_share : last / (std::isnan(cores) ? 1 : cores);
  auto found =
      watched ? fmt::format("other programs use {:.0f} % of {} CPUs now", 100 * share, count(cores))
              : fmt::format("{:.2f} over the last minute on {} CPUs", last, count(cores));
  if (share < kLoadNoted) return {"load", "ok", found, ""};
  return {"load", share < kLoadWarned ? "note" : "warn", found + ": they take turns with yours",
          "end them (top shows them), or wait until they are done"};
}

Finding memory(const Json& host) {
  const double total = number(host, "memory_bytes");
  const double limit = number(host, "cgroup_memory_bytes");
  const double available = available_bytes(host);
  auto found = fmt::format("{} available of {}", show_bytes(available), show_bytes(total));
  if (limit < total) found += fmt::format(", cgroup limit {}", show_bytes(limit));
  if (available < kMemoryWarned) {
    return {"memory", "warn", found + ": a worker that needs more is killed",
            "end other programs, or choose smaller cases"};
  }
  return {"memory", "ok", found, ""};
}

Finding swap(const Json& host) {
  const double total = number(host, "swap_bytes");
  const double used = number(host, "swap_used_bytes");
  if (used > 0) {
    return {"swap", "warn",
            fmt::format("{} in use: a page that comes back from disk takes milliseconds",
                        show_bytes(used)),
            "sudo swapoff -a, then sudo swapon -a when done"};
  }
  if (total > 0) {
    return {"swap", "note",
            fmt::format("{}, none in use: it would hide that memory is short", show_bytes(total)),
            "sudo swapoff -a for the time of the run"};
  }
  return {"swap", "ok", std::isnan(total) ? "not known" : "none", ""};
}

Finding huge_pages(const Json& host) {
  const auto choice = text(host, "thp");
  if (choice == "always") {
    return {
        "huge pages", "note",
        "always: whether a buffer gets huge pages is luck of each process; page faults are "
        "reported beside the time",
        "to compare without: echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"};
  }
  return {"huge pages", "ok", choice.empty() ? "not known" : choice + ": only where a program asks",
          ""};
}

Finding address_layout(const Json& host) {
  const auto state = text(host, "aslr");
  if (state == "off") {
    return {"layout", "note",
            "address randomization is off: all processes get one layout, so the intervals miss its "
            "luck",
            "sudo sysctl kernel.randomize_va_space=2"};
  }
  return {"layout", "ok",
          state.empty() ? "not known" : "randomized per process; invocations average over it", ""};
}

Finding virtual_machine(const Json& host, const MachineTrial& trial) {
  const auto name = text(host, "virtual_machine");
  const double steal = std::fmax(trial.steal_share, trial.steal_share_since_start);
  const auto stolen = [](double share) {
    return std::isnan(share) ? std::string("n/a") : show_number(100 * share) + " %";
  };
  const auto found =
      fmt::format("{}; other guests take {} of processor time now, {} since the start",
                  name.empty()    ? "none seen"
                  : name == "yes" ? "yes"
                                  : name,
                  stolen(trial.steal_share), stolen(trial.steal_share_since_start));
  if (steal > kStealWarned) {
    return {"virtual machine", "warn", found + ": steps are interrupted from outside",
            "choose dedicated cores or another hour, take more --invocations"};
  }
  if (!name.empty() || steal > kStealNoted) {
    return {"virtual machine", "note", found,
            "clock and neighbors are out of sight: trust the A/A interval"};
  }
  return {"virtual machine", "ok", found, ""};
}

Finding timer(const Json& host, const MachineTrial& trial) {
  const auto source = text(host, "clocksource");
  const auto found = fmt::format(
      "{}: a read takes {} ns, steps of {} ns", source.empty() ? "unknown source" : source,
      show_number(trial.clock_cost_ns), show_number(trial.clock_resolution_ns));
  if (trial.clock_cost_ns > kClockCostNoted_ns ||
      trial.clock_resolution_ns > kClockResolutionNoted_ns) {
    return {"timer", "warn", found + ": too coarse for steps of microseconds",
            "boot with clocksource=tsc where the processor's counter is steady"};
  }
  return {"timer", "ok", found, ""};
}

bool is_allocator_variable(const std::string& name) {
  for (const char* prefix : {"MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "PYTHONMALLOC", "JEMALLOC",
                             "MIMALLOC_", "TCMALLOC_"}) {
    if (name.starts_with(prefix)) return true;
  }
  return false;
}

/// `NAME=value` of the variables for which `wanted` holds.
template <class Wanted>
std::vector<std::string> variables(const Json& host, const Wanted& wanted) {
  std::vector<std::string> found;
  const Json all = host.value("variables", Json::object());
  for (auto entry = all.begin(); entry != all.end(); ++entry) {
    if (wanted(entry.key())) found.push_back(entry.key() + "=" + text(all, entry.key().c_str()));
  }
  return found;
}

Finding allocator(const Json& host) {
  const auto set = variables(host, is_allocator_variable);
  const auto found = fmt::format("glibc {}", text(host, "glibc"));
  if (set.empty()) return {"allocator", "ok", found + ", nothing set: what users have", ""};
  return {"allocator", "note",
          fmt::format("{}, and {} for all workers", found, fmt::join(set, " ")),
          "unset them unless you mean it; --allocator chooses for all workers alike"};
}

Finding math_libraries(const Json& host) {
  const auto set =
      variables(host, [](const std::string& name) { return !is_allocator_variable(name); });
  if (set.empty()) return {"BLAS, OpenMP", "ok", "no variable set: --threads decides", ""};
  const double cores = granted_cores(host);
  for (const char* name : {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"}) {
    const auto all = host.value("variables", Json::object());
    const double wanted = std::strtod(text(all, name).c_str(), nullptr);
    if (wanted > cores) {
      return {
          "BLAS, OpenMP", "warn",
          fmt::format("{}: more threads than the {:g} cores that can be used wait for each other",
                      fmt::join(set, " "), cores),
          fmt::format("unset {}", name)};
    }
  }
  return {"BLAS, OpenMP", "note", fmt::format("all workers inherit {}", fmt::join(set, " ")),
          "unset what you do not mean to measure"};
}

/// Words for the bits of clocks_throttle_reasons.active, as nvml.h numbers them.
std::string throttle_reasons(const std::string& bits) {
  static constexpr std::pair<std::uint64_t, const char*> kReasons[] = {
      {0x2, "clocks set by an application"},
      {0x4, "power cap"},
      {0x8, "hardware slowdown"},
      {0x10, "sync boost"},
      {0x20, "heat (software)"},
      {0x40, "heat (hardware)"},
      {0x80, "power brake"},
      {0x100, "display clocks"}};
  const auto value = std::strtoull(bits.c_str(), nullptr, 16);
  std::vector<std::string> names;
  for (const auto& [bit, name] : kReasons) {
    if ((value & bit) != 0) names.emplace_back(name);
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

Finding gpu(const Json& host, size_t index) {
  const auto& device = host["gpus"][index];
  auto found =
      fmt::format("{}: {} of {} MHz, {} C, {} of {} W, driver {}", text(device, "name"),
                  count(number(device, "clock_mhz")), count(number(device, "clock_max_mhz")),
                  count(number(device, "temperature_c")), show_number(number(device, "power_w"), 3),
                  count(number(device, "power_limit_w")), text(device, "driver"));
  const auto topic = fmt::format("GPU {}", index);
  // 0x1 is "idle", which says nothing of the clock under load.
  if (const auto reasons = throttle_reasons(text(device, "throttle")); !reasons.empty()) {
    return {topic, "warn", fmt::format("{}; held back by: {}", found, reasons),
            "let it cool or raise its power limit; nvidia-smi -q -d PERFORMANCE tells more"};
  }
  if (number(device, "utilisation_percent") > 5) {
    return {topic, "warn",
            fmt::format("{}; {} % busy with other work", found,
                        count(number(device, "utilisation_percent"))),
            "end the other programs: nvidia-smi shows them"};
  }
  return {topic, "note", found + "; the clock moves with heat and power",
          fmt::format("where allowed: sudo nvidia-smi -i {} -pm 1 and --lock-gpu-clocks", index)};
}

Finding disk(const MachineTrial& trial) {
  if (trial.cache.empty() || std::isnan(trial.cache_free_bytes)) {
    return {"disk", "note", "free space of the cache is not known", ""};
  }
  const auto found = fmt::format("{} free for the cache {}", show_bytes(trial.cache_free_bytes),
                                 trial.cache.string());
  if (trial.cache_free_bytes < kDiskWarned) {
    return {"disk", "warn", found + ": weights and golden values of large cases may not fit",
            "free some space, or name another folder with --cache"};
  }
  return {"disk", "ok", found, ""};
}

Finding python(const MachineTrial& trial) {
  if (trial.python.empty()) {
    return {"python", "warn", "no interpreter was found: no baselines, no weights",
            "name one with --python"};
  }
  if (trial.torch.empty()) {
    return {"python", "warn",
            fmt::format("{} has no torch: no baselines, no weights", trial.python),
            "python -m pip install torch, or name another with --python"};
  }
  const auto found = fmt::format("{} with torch {}", trial.python, trial.torch);
  if (!trial.report_packages.empty()) {
    return {"python", "note",
            fmt::format("{}, without {}: no HTML page", found, trial.report_packages),
            "python -m pip install " + trial.report_packages};
  }
  return {"python", "ok", found, ""};
}

}  // namespace

std::vector<Finding> examine(const Json& host, const MachineTrial& trial) {
  std::vector<Finding> findings = {
      processor(host),      threads(host),   governor(host),       turbo(host),
      load(host, trial),    memory(host),    swap(host),           huge_pages(host),
      address_layout(host), allocator(host), math_libraries(host), virtual_machine(host, trial),
      timer(host, trial),   disk(trial),     python(trial)};
  const auto gpus = host.value("gpus", Json::array());
  for (size_t i = 0; i < gpus.size(); ++i) findings.push_back(gpu(host, i));
  if (gpus.empty())
    findings.push_back({"GPU", "ok", "none found by nvidia-smi: cases run on the CPU", ""});
  return findings;
}

}  // namespace torchpace::cli
