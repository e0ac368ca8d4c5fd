// What of this machine is ours to use, from what host.hpp tells.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "results/results.hpp"

namespace torchpace::cli {

/// A number of the host's environment, or `fallback` where it is not known.
inline double host_number(const Json& host, const char* key, double fallback) {
  const auto found = host.find(key);
  return found != host.end() && found->is_number() ? found->get<double>() : fallback;
}

/// Physical cores in the affinity mask, and no more than the cgroup's CPU quota, which may be a
/// fraction; NaN where neither is known.
inline double granted_cores(const Json& host) {
  const double cores = host_number(host, "affinity_cores", host_number(host, "cores", kUnknown));
  return std::fmin(cores, host_number(host, "cgroup_cpus", kUnknown));
}

/// Threads that have a core for themselves; at least 1.
inline int usable_cores(const Json& host) {
  const double cores = granted_cores(host);
  return std::isnan(cores) ? 1 : std::max(1, static_cast<int>(cores));
}

/// Bytes that can be taken: what is available, and no more than the cgroup's limit; NaN where
/// neither is known.
inline double available_bytes(const Json& host) {
  return std::fmin(host_number(host, "memory_available_bytes", kUnknown),
                   host_number(host, "cgroup_memory_bytes", kUnknown));
}

inline bool has_nvidia_device() {
  return access("/dev/nvidiactl", F_OK) == 0 || access("/dev/dxg", F_OK) == 0;  // dxg: in WSL
}

}  // namespace torchpace::cli
