// Workloads as Google Benchmark cases, and a main whose exit code tells what happened. The only
// header that needs Google Benchmark (1.7 or later).
//
//   torchpace::Workload matmul(int64_t n) {
//     return {.step = [x = torch::randn({n, n})] { x.matmul(x); }};
//   }
//   TORCHPACE_BENCHMARK(matmul)->ArgName("n")->Arg(64);
//   TORCHPACE_BENCHMARK_MAIN()
//
// The workload of a case is built once, warmed up, and restored before each of Google Benchmark's
// entries; time is manual, so the library's own code (and its build type) is outside the timed
// region.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "torchpace/detail/other_load.hpp"
#include "torchpace/detail/standard_output.hpp"
#include "torchpace/environment.hpp"
#include "torchpace/optim/factory.hpp"
#include "torchpace/timing.hpp"
#include "torchpace/workload.hpp"

namespace torchpace {

namespace detail {

/// What the program was asked for and what became of it.
struct BenchmarkProgram {
  torch::Device device = torch::kCPU;
  Settings settings = {};
  std::size_t failed = 0;
  std::size_t skipped = 0;
  std::size_t measured = 0;
};

inline BenchmarkProgram& benchmark_program() {
  static BenchmarkProgram program;
  return program;
}

template <std::size_t... I>
Workload build(auto function, const benchmark::State& state, std::index_sequence<I...>) {
  return function(state.range(I)...);
}

template <class... Arguments>
Workload build(Workload (*function)(Arguments...), const benchmark::State& state) {
  return build(function, state, std::index_sequence_for<Arguments...>());
}

/// The case that is being measured. Google Benchmark enters a function many times for one case;
/// only one is kept alive.
struct CurrentCase {
  std::string key;
  std::optional<Workload> workload;
  double peak_resident_bytes = 0;
};

inline CurrentCase& current_case() {
  static CurrentCase current;
  return current;
}

template <class... Arguments>
void prepare(Workload (*function)(Arguments...), const std::string& name,
             const benchmark::State& state) {
  auto& current = current_case();
  std::string key = name;
  for (std::size_t i = 0; i < sizeof...(Arguments); ++i)
    key += '/' + std::to_string(state.range(i));
  if (current.workload && current.key == key) return;
  current.workload.reset();  // first, so that two never share the memory
  const auto device = benchmark_program().device;
  reset_peak_memory(device);
  const double resident = memory(device).resident_bytes;
  current.workload = build(function, state);
  current.key = key;
  measure(current.workload->step, current.workload->device,
          {.stop = {.relative_width = 1e9, .min_samples = 5}});
  current.peak_resident_bytes = std::max(0.0, memory(device).resident_peak_bytes - resident);
}

inline void run_current(benchmark::State& state) {
  auto& w = *current_case().workload;
  if (w.restore) w.restore();
  w.step();  // restoring has cooled the caches
  const auto iterations = static_cast<std::size_t>(state.max_iterations);
  while (state.KeepRunningBatch(state.max_iterations)) {
    const auto block = run_block(w.step, w.device, w.phase, iterations);
    state.SetIterationTime(std::accumulate(block.step_ns.begin(), block.step_ns.end(), 0.0) / 1e9);
    state.counters["page_faults"] = block.page_faults / static_cast<double>(iterations);
  }
  const auto rate = [&](double per_step) {
    return benchmark::Counter(per_step * static_cast<double>(state.iterations()),
                              benchmark::Counter::kIsRate);
  };
  if (w.items > 0) state.counters[w.item + "/s"] = rate(w.items);
  if (w.flops > 0) state.counters["FLOP/s"] = rate(w.flops);
  const auto peak = memory(w.device);
  state.counters["peak_bytes"] =
      w.device.is_cpu() ? current_case().peak_resident_bytes : peak.device_allocated_peak_bytes;
}

/// Registers `function`, whose int64_t parameters are the case's arguments.
template <class... Arguments>
benchmark::internal::Benchmark* register_workload(const char* name,
                                                  Workload (*function)(Arguments...)) {
  const auto run = [function, name](benchmark::State& state) {
    auto& program = benchmark_program();
    try {
      prepare(function, name, state);
      run_current(state);
      return;
    } catch (const DeviceUnavailable& e) {
      ++program.skipped;
      state.SkipWithError(e.what());
    } catch (const c10::Error& e) {
      ++program.failed;
      state.SkipWithError(e.what_without_backtrace());
    } catch (const std::exception& e) {
      ++program.failed;
      state.SkipWithError(e.what());
    }
    current_case().workload.reset();
  };
  return benchmark::RegisterBenchmark(name, run)->UseManualTime()->Unit(benchmark::kMillisecond);
}

/// Passes everything on and counts the runs that were measured. Knows whether what it was written
/// to took all.
class CountingReporter : public benchmark::BenchmarkReporter {
 public:
  explicit CountingReporter(std::unique_ptr<benchmark::BenchmarkReporter> to, bool counts = true)
      : to_(std::move(to)), counts_(counts) {}
  bool ReportContext(const Context& context) override {
    to_->SetOutputStream(&GetOutputStream());
    to_->SetErrorStream(&GetErrorStream());
    return to_->ReportContext(context);
  }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const auto& run : runs)
      benchmark_program().measured +=
          counts_ && run.iterations > 0 && run.real_accumulated_time > 0;
    to_->ReportRuns(runs);
  }
  void Finalize() override {
    to_->Finalize();
    written_ = GetOutputStream().flush().good();
  }
  bool written() const { return written_; }

 private:
  std::unique_ptr<benchmark::BenchmarkReporter> to_;
  bool counts_, written_ = true;
};

/// The value of a flag of Google Benchmark, which it takes from the environment too.
inline std::string flag_of(int argc, char** argv, const std::string& name) {
  std::string upper = name;
  for (char& c : upper) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  const char* found = std::getenv(upper.c_str());
  std::string value = found == nullptr ? "" : found;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i], start = "--" + name + '=';
    if (argument.starts_with(start)) value = argument.substr(start.size());
  }
  return value;
}

/// What writes the file of --benchmark_out; null where there is none.
inline std::unique_ptr<CountingReporter> file_reporter(const std::string& path,
                                                       const std::string& format) {
  if (path.empty()) return nullptr;
  std::unique_ptr<benchmark::BenchmarkReporter> to;
  if (format == "console") {
    to = std::make_unique<benchmark::ConsoleReporter>(benchmark::ConsoleReporter::OO_None);
  } else if (format == "csv") {
    return nullptr;  // deprecated there: Google Benchmark's own, unchecked
  } else {
    to = std::make_unique<benchmark::JSONReporter>();
  }
  return std::make_unique<CountingReporter>(std::move(to), /*counts=*/false);
}

/// Takes `--name=value` out of the arguments, or "" where it is not there.
inline std::string take_option(int& argc, char** argv, const std::string& name) {
  std::string value;
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.starts_with(name + '=')) {
      value = argument.substr(name.size() + 1);
    } else {
      argv[kept++] = argv[i];
    }
  }
  argc = kept;
  return value;
}

}  // namespace detail

/// The device that `--device` of the program names; a workload is built there.
inline torch::Device benchmark_device() { return detail::benchmark_program().device; }

/// Of `--settings`: optimizer, lr, autocast, ... A workload that heeds them is built with them.
/// `training_package` is that of `--training_package`.
inline const Settings& benchmark_settings() { return detail::benchmark_program().settings; }

/// Runs the registered cases. `--device=cpu|cuda:0`, `--threads=N`, `--settings='KEY=VALUE ...'`,
/// `--training_package=FILE` for cases of a compiled training step, and all of Google Benchmark's
/// flags. Returns 0 all measured, 1 a case failed, 2 usage, 4 the filter matched nothing, 77 the
/// device is not here.
inline int benchmark_main(int argc, char** argv) {
  const std::string program_name = argc > 0 ? argv[0] : "benchmark";
  try {
    const auto device = detail::take_option(argc, argv, "--device");
    const auto threads = detail::take_option(argc, argv, "--threads");
    if (!threads.empty()) {
      const int count = Settings{{"--threads", threads}}.require<int>("--threads");
      if (count < 1) throw SettingsError("--threads: expected 1 or more, got " + threads);
      at::set_num_threads(count);
    }
    auto& program = detail::benchmark_program();
    if (!device.empty()) program.device = choose_device(device);
    program.settings = Settings::parse(detail::take_option(argc, argv, "--settings"));
    program.settings.set("device", program.device.str());
    if (const auto package = detail::take_option(argc, argv, "--training_package");
        !package.empty())
      program.settings.set("training_package", package);
    optimizer_choice(program.settings);  // a wrong value is refused before anything is measured
    ExecutionOptions::from(program.settings);
  } catch (const DeviceUnavailable& e) {
    std::cerr << program_name << ": skipped: " << e.what() << '\n';
    return 77;
  } catch (const SettingsError& e) {
    std::cerr << program_name << ": " << e.what() << '\n';
    return 2;
  }
  const auto out = detail::flag_of(argc, argv, "benchmark_out");
  const auto file = detail::file_reporter(out, detail::flag_of(argc, argv, "benchmark_out_format"));
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  for (const auto& [key, value] : environment(benchmark_device())) {
    benchmark::AddCustomContext("torchpace." + key, value);
  }
  for (const auto& [key, value] : benchmark_settings().values()) {
    benchmark::AddCustomContext("torchpace.settings." + key, value);
  }
  detail::CountingReporter reporter{
      std::unique_ptr<benchmark::BenchmarkReporter>(benchmark::CreateDefaultDisplayReporter())};
  const detail::OtherLoad others;
  const auto matched = benchmark::RunSpecifiedBenchmarks(&reporter, file.get());
  if (const auto warning = others.warning(); !warning.empty())
    std::cerr << program_name << ": " << warning << '\n';
  benchmark::Shutdown();
  const auto& program = detail::benchmark_program();
  detail::current_case().workload.reset();
  if (matched == 0) {
    std::cerr << program_name
              << ": no case matches the filter; --benchmark_list_tests lists them\n";
    return 4;
  }
  if (file != nullptr && !file->written()) {
    std::cerr << program_name << ": " << out << ": could not be written; is the disk full?\n";
    return 1;
  }
  if (output_is_lost()) {
    std::cerr << program_name << ": " << kLostOutput << '\n';
    return 1;
  }
  if (program.failed > 0) return 1;
  if (program.measured == 0 && program.skipped > 0) return 77;
  return 0;
}

}  // namespace torchpace

#define TORCHPACE_CONCATENATE_(a, b) a##b
#define TORCHPACE_CONCATENATE(a, b) TORCHPACE_CONCATENATE_(a, b)
/// Registers a function `Workload f(int64_t...)`; continue with ->ArgNames(...)->Args(...).
#define TORCHPACE_BENCHMARK(function)                                                            \
  [[maybe_unused]] static auto* const TORCHPACE_CONCATENATE(torchpace_benchmark_, __COUNTER__) = \
      ::torchpace::detail::register_workload(#function, function)
/// Defines main.
#define TORCHPACE_BENCHMARK_MAIN() \
  int main(int argc, char** argv) { return ::torchpace::benchmark_main(argc, argv); }
