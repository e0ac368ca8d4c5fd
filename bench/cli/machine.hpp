// What of this machine is ours to use, from what host.hpp tells.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "results.hpp"

namespace torchpace::cli {

/// A number of the host's environment, or `fallback` where it is not known.
inline double host_number(const Json& host, const char* key, double fallback) {
  const auto found = host.find(key);
  return found != host.end() && found->is_number() ? found->get<double>() : fallback;
}

/// Physical cores in the affinity mask, and no more than the cgroup's CPU quota; at least 1.
inline int usable_cores(const Json& host) {
  constexpr double kNone = std::numeric_limits<double>::infinity();
  const double cores = std::min(host_number(host, "affinity_cores", kNone),
                                std::floor(host_number(host, "cgroup_cpus", kNone)));
  return std::isfinite(cores) ? std::max(1, static_cast<int>(cores)) : 1;
}

/// Bytes that can be taken: what is available, and no more than the cgroup's limit.
inline double available_bytes(const Json& host) {
  constexpr double kNone = std::numeric_limits<double>::infinity();
  return std::min(host_number(host, "memory_available_bytes", kNone),
                  host_number(host, "cgroup_memory_bytes", kNone));
}

inline bool has_nvidia_device() {
  return access("/dev/nvidia0", F_OK) == 0 || access("/dev/dxg", F_OK) == 0;  // dxg: in WSL
}

}  // namespace torchpace::cli
