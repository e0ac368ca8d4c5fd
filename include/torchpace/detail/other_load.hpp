// How busy other programs keep the CPUs that this one may use, while it measures. Free of torch.
#pragma once

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <limits>
#include <sstream>
#include <string>

namespace torchpace::detail {

/// CPU seconds since some moment in the past.
struct CpuSeconds {
  double wall = 0;
  double all = std::numeric_limits<double>::quiet_NaN();  // of every program; NaN: not known
  double own = 0;                                         // of this one
};

/// Of the CPUs that this process may use. Source: proc_stat(5), whose times are in ticks.
inline CpuSeconds cpu_seconds() {
  CpuSeconds now;
  now.wall =
      std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  now.own = seconds(usage.ru_utime) + seconds(usage.ru_stime);
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return now;
  std::ifstream file("/proc/stat");
  double ticks = 0;
  bool known = false;
  for (std::string line; std::getline(file, line);) {
    int cpu = -1;
    double user = 0, nice = 0, system = 0, idle = 0, iowait = 0, irq = 0, softirq = 0;
    if (std::sscanf(line.c_str(), "cpu%d %lf %lf %lf %lf %lf %lf %lf", &cpu, &user, &nice, &system,
                    &idle, &iowait, &irq, &softirq) < 8 ||
        cpu < 0 || cpu >= CPU_SETSIZE || !CPU_ISSET(cpu, &allowed)) {
      continue;
    }
    ticks += user + nice + system + irq + softirq;
    known = true;
  }
  if (known) now.all = ticks / static_cast<double>(sysconf(_SC_CLK_TCK));
  return now;
}

/// Begins to watch when it is made.
class OtherLoad {
 public:
  explicit OtherLoad(std::function<CpuSeconds()> source = cpu_seconds)
      : source_(std::move(source)), begin_(source_()) {}

  /// Cores that other programs have kept busy on average. NaN where the kernel does not tell, and
  /// before a tenth of a second has gone by, which is ten ticks.
  double cores() const {
    const auto now = source_();
    const double elapsed = now.wall - begin_.wall;
    if (elapsed < 0.1) return std::numeric_limits<double>::quiet_NaN();
    const double others = (now.all - begin_.all) - (now.own - begin_.own);
    return others < 0 ? 0 : others / elapsed;  // ticks are coarse
  }

  /// One line where they kept more than a fifth of a core busy; else empty.
  std::string warning() const {
    const double busy = cores();
    if (!(busy > 0.2)) return "";
    std::ostringstream text;
    text.precision(2);
    text << "other programs kept " << busy
         << " cores busy while this one measured: they take turns with yours; end them (top shows "
            "them), or wait until they are done";
    return text.str();
  }

 private:
  std::function<CpuSeconds()> source_;
  CpuSeconds begin_;
};

}  // namespace torchpace::detail
