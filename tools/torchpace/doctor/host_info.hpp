// The machine as the kernel and the GPU's driver describe it: what results.json records as its
// environment and what the doctor judges. Nothing is measured and nothing is changed.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "results/results.hpp"

namespace torchpace::cli {

/// Where the facts come from; tests give a tree and variables of their own.
struct HostSources {
  std::filesystem::path root = "/";              // /proc, /sys and /etc are read below it
  std::map<std::string, std::string> variables;  // of the environment
  std::string nvidia_smi = "nvidia-smi";         // program to ask for GPUs; empty: not asked

  /// The variables of this process.
  static HostSources of_this_machine();
};

/// os, kernel, cpu, microcode, sockets, cores, logical_cpus, smt, numa_nodes, affinity,
/// affinity_cpus, affinity_cores, cgroup_cpus, cgroup_memory_bytes, memory_bytes,
/// memory_available_bytes, swap_bytes, swap_used_bytes, governor, turbo, load_average, thp, aslr,
/// virtual_machine, clocksource, glibc, variables, gpus. What is not known is null.
Json host_environment(const HostSources& sources = HostSources::of_this_machine());

/// GPUs from the answer of `nvidia-smi --query-gpu=... --format=csv,noheader,nounits` with the
/// fields of kGpuFields; what the driver does not tell is null.
Json parse_gpus(const std::string& csv);

/// Fields that are asked of nvidia-smi, in this order; {} is why clocks are low, which drivers name
/// in two ways.
inline constexpr const char* kGpuFields =
    "name,driver_version,memory.total,clocks.sm,clocks.max.sm,{},"
    "temperature.gpu,power.draw,power.limit,persistence_mode,utilization.gpu";

/// Shares of processor time since the machine started, from /proc/stat.
struct ProcessorTimes {
  double steal = 0;  // taken by the hypervisor for others, in ticks
  double idle = 0;   // nothing to do, or waiting for a disk
  double total = 0;
};
ProcessorTimes processor_times(const std::filesystem::path& root = "/");

/// The number of CPUs in a list such as 0-3,8.
int count_of_list(const std::string& list);

}  // namespace torchpace::cli
