#include "controller/core_latency.hpp"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <system_error>
#include <thread>
#include <utility>

#include "controller/affinity.hpp"
#include "results/results.hpp"
#include "support/process.hpp"
#include "torchpace/statistics.hpp"

namespace torchpace::cli {
namespace {

constexpr int kRoundTrips = 20;  // of one reading: the clock's own cost must not show
constexpr size_t kReadings = 11;
constexpr double kLimit_s = 0.01;  // of all readings: two that share a core take turns of ms
constexpr int kReady = -1, kNotBound = -2, kStop = -3;

/// Alone in its pair of cache lines, which are fetched together.
struct alignas(128) Flag {
  std::atomic<int> value{0};
};

int get(const Flag& flag) { return flag.value.load(std::memory_order_acquire); }

/// Tells the core, and the host of a virtual one, that this is a loop that waits.
void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

void set(Flag& flag, int value) { flag.value.store(value, std::memory_order_release); }

/// Round trips to a thread that answers, in ns a message. None where they take too long.
std::vector<double> read(Flag& there, const Flag& back) {
  std::vector<double> readings_ns;
  const auto start = Clock::now();
  for (int i = 0; readings_ns.size() < kReadings;) {
    const auto begin = Clock::now();
    for (int trip = 0; trip < kRoundTrips; ++trip) {
      set(there, ++i);
      for (int spins = 1; get(back) != i; ++spins) {
        if (spins % 1024 == 0 && seconds_since(start) > kLimit_s) return {};
        relax();
      }
    }
    readings_ns.push_back(seconds_since(begin) * 1e9 / (2 * kRoundTrips));
  }
  return readings_ns;
}

}  // namespace

double core_latency_ns(int threads) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  sched_getaffinity(0, sizeof allowed, &allowed);
  const auto cpus = allowed_cpus();
  const auto used = std::min(cpus.size(), static_cast<size_t>(std::max(threads, 0)));
  if (used < 2) return kUnknown;
  Flag there, back;
  std::thread other;
  try {
    other = std::thread([&, cpu = cpus[used - 1]] {
      const bool bound = bind_to(cpu);
      set(back, bound ? kReady : kNotBound);
      for (int i = 1; bound; ++i) {
        int message = get(there);
        for (; message != i && message != kStop; message = get(there)) relax();
        if (message == kStop) return;
        set(back, i);
      }
    });
  } catch (const std::system_error&) {
    return kUnknown;
  }
  const bool bound = bind_to(cpus[0]);
  while (get(back) == 0) std::this_thread::yield();
  std::vector<double> readings_ns;
  if (bound && get(back) == kReady) readings_ns = read(there, back);
  set(there, kStop);
  other.join();
  sched_setaffinity(0, sizeof allowed, &allowed);
  return median(readings_ns);
}

bool same_place(double a_ns, double b_ns) { return std::abs(std::log2(a_ns / b_ns)) < 1; }

}  // namespace torchpace::cli
