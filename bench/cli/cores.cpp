#include "cores.hpp"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <system_error>
#include <thread>
#include <vector>

#include "process.hpp"
#include "results.hpp"
#include "torchpace/statistics.hpp"

namespace torchpace::cli {
namespace {

constexpr int kRoundTrips = 20;  // of one reading: the clock's own cost must not show
constexpr size_t kReadings = 11;
constexpr int kReady = -1, kNotBound = -2;

/// Alone in its pair of cache lines, which are fetched together.
struct alignas(128) Flag {
  std::atomic<int> value{0};
};

cpu_set_t affinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof set, &set);
  return set;
}

std::vector<int> cpus_of(const cpu_set_t& set) {
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

bool bind(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  return sched_setaffinity(0, sizeof set, &set) == 0;
}

void await(const Flag& flag, int value) {
  while (flag.value.load(std::memory_order_acquire) != value) {
  }
}

void set(Flag& flag, int value) { flag.value.store(value, std::memory_order_release); }

}  // namespace

double message_ns(int threads) {
  const auto allowed = affinity();
  const auto cpus = cpus_of(allowed);
  const auto used = std::min(cpus.size(), static_cast<size_t>(std::max(threads, 0)));
  if (used < 2) return kUnknown;
  Flag there, back;
  std::thread other;
  try {
    other = std::thread([&, cpu = cpus[used - 1]] {
      const bool bound = bind(cpu);
      set(back, bound ? kReady : kNotBound);
      for (int i = 1; bound && i <= kRoundTrips * static_cast<int>(kReadings); ++i) {
        await(there, i);
        set(back, i);
      }
    });
  } catch (const std::system_error&) {
    return kUnknown;
  }
  const bool bound = bind(cpus[0]);
  while (back.value.load(std::memory_order_acquire) == 0) std::this_thread::yield();
  std::array<double, kReadings> readings_ns{};
  int i = 0;
  // Also where this one is not bound: the other waits. Two that spin on one core would take turns.
  if (back.value.load(std::memory_order_acquire) == kReady) {
    for (double& reading_ns : readings_ns) {
      const auto begin = Clock::now();
      for (int trip = 0; trip < kRoundTrips; ++trip) {
        set(there, ++i);
        await(back, i);
      }
      reading_ns = seconds_since(begin) * 1e9 / (2 * kRoundTrips);
    }
  }
  other.join();
  sched_setaffinity(0, sizeof allowed, &allowed);
  return bound && i > 0 ? median(readings_ns) : kUnknown;
}

bool same_place(double a_ns, double b_ns) { return std::abs(std::log2(a_ns / b_ns)) < 1; }

}  // namespace torchpace::cli
