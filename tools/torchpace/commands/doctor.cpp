#include "commands/doctor.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <thread>

#include "commands/command.hpp"
#include "controller/machine_limits.hpp"
#include "doctor/usable_resources.hpp"
#include "plan/comparison_plan.hpp"
#include "plan/runtime_discovery.hpp"
#include "report/number_format.hpp"
#include "results/results.hpp"
#include "support/process.hpp"
#include "support/strings.hpp"

namespace torchpace::cli {
namespace {

namespace fs = std::filesystem;

constexpr auto kWatch = std::chrono::milliseconds(300);
constexpr double kPythonLimitSeconds = 60;
constexpr size_t kTextColumns = 78;
// Working sets that lie in each cache, and in none.
constexpr double kReadBytes[] = {32 << 10, 256 << 10, 2 << 20, 16 << 20, 64 << 20, 256 << 20};

/// Cost of a read of the steady clock and the smallest step between two reads, in ns.
void probe_clock(MachineTrial& trial) {
  using ns = std::chrono::duration<double, std::nano>;
  constexpr int kReads = 20000;
  double smallest = std::numeric_limits<double>::infinity();
  const auto start = Clock::now();
  auto last = start;
  for (int i = 0; i < kReads; ++i) {
    const auto now = Clock::now();
    const double step = ns(now - last).count();
    if (step > 0) smallest = std::min(smallest, step);
    last = now;
  }
  trial.clock_cost_ns = ns(last - start).count() / kReads;
  if (std::isfinite(smallest)) trial.clock_resolution_ns = smallest;
}

/// Free bytes of the disk that holds the folder, or will hold it.
void probe_disk(MachineTrial& trial, const fs::path& cache) {
  std::error_code error;
  trial.cache = cache;
  auto folder = fs::absolute(cache, error);
  while (!folder.empty() && !fs::exists(folder, error) && folder.has_relative_path()) {
    folder = folder.parent_path();
  }
  const auto space = fs::space(folder, error);
  if (!error) trial.cache_free_bytes = static_cast<double>(space.available);
}

/// Asks for versions without importing torch, which takes seconds.
void probe_python(MachineTrial& trial, const std::string& interpreter) {
  const std::string code =
      "import importlib.metadata as m, importlib.util as u, sys\n"
      "print(sys.executable)\n"
      "try: print(m.version('torch'))\n"
      "except m.PackageNotFoundError: print('')\n"
      "print(' '.join(n for n in ('jinja2', 'matplotlib') if u.find_spec(n) is None))\n";
  const auto program = interpreter.empty() ? std::string("python3") : interpreter;
  try {
    const auto answer = run_to_end({{program, "-c", code}, {}}, kPythonLimitSeconds);
    const auto first = answer.find('\n');
    const auto second = answer.find('\n', first + 1);
    if (second == std::string::npos) return;
    trial.python = answer.substr(0, first);
    trial.torch = answer.substr(first + 1, second - first - 1);
    trial.report_packages = answer.substr(second + 1, answer.find('\n', second + 1) - second - 1);
  } catch (const ProcessError&) {
  }
}

void print(const Finding& finding, std::ostream& out, bool color) {
  const auto painted = [&](const char* code, const std::string& words) {
    return color ? fmt::format("\033[{}m{}\033[0m", code, words) : words;
  };
  const auto level =
      finding.level == "warn" ? painted("1;33", "warn") : fmt::format("{:<4}", finding.level);
  const auto lines = [&](const std::string& words) {
    std::string result, line;
    for (const auto& word : split_list(words, ' ')) {
      if (!line.empty() && columns(line) + 1 + columns(word) > kTextColumns) {
        result += line + "\n" + std::string(22, ' ');
        line.clear();
      }
      line += (line.empty() ? "" : " ") + word;
    }
    return result + line;
  };
  out << level << "  " << fmt::format("{:<16}", finding.topic) << lines(finding.text) << "\n";
  if (!finding.advice.empty()) out << std::string(22, ' ') << lines("-> " + finding.advice) << "\n";
}

}  // namespace

void watch_processors(MachineTrial& trial, const fs::path& root) {
  const auto before = processor_times(root);
  std::this_thread::sleep_for(kWatch);
  const auto after = processor_times(root);
  const double passed = after.total - before.total;
  if (passed > 0) {
    trial.steal_share = (after.steal - before.steal) / passed;
    trial.busy_share =
        std::clamp(1 - (after.idle - before.idle) / passed - trial.steal_share, 0.0, 1.0);
  }
  if (after.total > 0) trial.steal_share_since_start = after.steal / after.total;
}

int run_doctor(const DoctorOptions& options, std::ostream& out) {
  const auto host = host_environment(options.sources);
  MachineTrial trial;
  probe_clock(trial);
  watch_processors(trial, options.sources.root);
  if (!options.cache.empty()) probe_disk(trial, options.cache);
  probe_python(trial, options.python);
  const auto findings = examine(host, trial);
  if (options.json) {
    Json list = Json::array();
    for (const auto& finding : findings) {
      list.push_back({{"topic", finding.topic},
                      {"level", finding.level},
                      {"text", finding.text},
                      {"advice", finding.advice}});
    }
    out << Json{{"host", host}, {"findings", list}}.dump(2, ' ', false,
                                                         Json::error_handler_t::replace)
        << "\n";
    return 0;
  }
  for (const auto& finding : findings) print(finding, out, options.color);
  const auto warned = std::count_if(findings.begin(), findings.end(),
                                    [](const auto& finding) { return finding.level == "warn"; });
  out << (warned == 0
              ? "Nothing here spoils the numbers."
              : fmt::format(
                    "{} of {} findings spoil the numbers; intervals widen, verdicts turn UNSURE.",
                    warned, findings.size()))
      << "\n";
  return 0;
}

int run_limits(int threads, bool json, std::ostream& out) {
  Limits limits;
  limits.threads = threads;
  for (const char* dtype : {"float32", "float64"}) measure_fma(limits, dtype);
  for (const double bytes : kReadBytes) measure_read(limits, bytes);
  if (json) {
    out << to_json(limits).dump(2) << "\n";
    return 0;
  }
  out << fmt::format("{} thread{}, each bound to a processor; the best of several trials\n",
                     threads, threads == 1 ? "" : "s");
  for (const auto& [dtype, rate] : limits.fma_flops_per_s) {
    out << fmt::format("multiply-adds, {:<10}{:>14}  ({})\n", dtype, show_amount(rate, "FLOP/s"),
                       limits.isa);
  }
  for (const auto& each : limits.read) {
    out << fmt::format("reads of {:<16}{:>14}\n", show_bytes(each.bytes),
                       show_amount(each.bytes / each.seconds, "B/s"));
  }
  return 0;
}

void register_doctor(CLI::App& app, CommandLine& line) {
  struct Options {
    std::string python, cache;
    bool json = false, limits = false;
    int threads = 0;
  };
  auto& command = *app.add_subcommand("doctor", "Say what this machine will do to the numbers");
  const auto o = std::make_shared<Options>();
  command.add_flag("--json", o->json, "Print JSON");
  const auto limits = command.add_flag(
      "--limits", o->limits, "Measure this machine's rates of multiply-adds and of reads instead");
  command
      .add_option("--threads", o->threads,
                  "Threads that the limits are of (default: physical cores available to us)")
      ->check(CLI::Range(1, 4096))
      ->needs(limits);
  command
      .add_option("--python", o->python,
                  "Python interpreter to look into (default: TORCHPACE_PYTHON, .venv, python3)")
      ->type_name("PATH");
  command
      .add_option("--cache", o->cache,
                  "Folder whose disk is looked at (default: TORCHPACE_CACHE, ~/.cache/torchpace)")
      ->type_name("DIR");
  command.callback([o, &line] {
    line.action = [o] {
      if (o->limits) {
        const auto cores = usable_cores(host_environment(HostSources::of_this_machine()));
        return run_limits(o->threads > 0 ? o->threads : cores, o->json, std::cout);
      }
      return run_doctor({.json = o->json,
                         .color = isatty(STDOUT_FILENO) == 1,
                         .python = find_installation(o->python).python,
                         .cache = cache_folder(o->cache)},
                        std::cout);
    };
  });
}

}  // namespace torchpace::cli
