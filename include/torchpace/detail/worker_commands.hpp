// What a worker answers to each command of docs/worker-protocol.md, in the process that has loaded
// a case. Twin: python/torchpace/worker/commands.py.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>
#ifdef __GLIBC__  // which the headers above tell
#include <malloc.h>
#endif

#include "torchpace/detail/error.hpp"
#include "torchpace/detail/json.hpp"
#include "torchpace/detail/operator_libraries.hpp"
#include "torchpace/environment.hpp"
#include "torchpace/io/tensor_file.hpp"
#include "torchpace/parity.hpp"
#include "torchpace/profiling.hpp"
#include "torchpace/workload.hpp"

namespace torchpace {

inline constexpr int kWorkerProtocol = 1;

struct WorkerOptions {
  std::string runtime = "worker";
  // What it can load; "*": any of torchpace's own cases.
  std::vector<std::string> cases = {"default"};
  double slow = 0;           // tests only: every step takes this fraction longer, by a busy wait
  bool approximate = false;  // as Runtime::approximate
};

namespace detail {

/// Waits after each step, or part of one, for a fraction of its time, spinning: a runtime that is
/// slower by a known amount.
inline std::function<void()> slowed(std::function<void()> step, torch::Device device,
                                    double fraction) {
  return [step = std::move(step), device, fraction] {
    const auto begin = Clock::now();
    step();
    synchronize(device);
    const auto now = Clock::now();
    const auto until = now + std::chrono::duration_cast<Clock::duration>((now - begin) * fraction);
    while (Clock::now() < until) {
    }
  };
}

class Worker {
 public:
  Worker(WorkerOptions options, std::function<Workload(const Settings&)> load)
      : options_(std::move(options)), load_(std::move(load)) {}

  std::string greeting() const {
    std::vector<std::string> cases;
    for (const auto& name : options_.cases) cases.push_back(json_string(name));
    return JsonObject()
        .add("protocol", kWorkerProtocol)
        .add("runtime", options_.runtime)
        .raw("cases", json_array(cases))
        .str();
  }

  /// The answer to one command, without the newline. Errors become {"error"} or {"skipped"}.
  std::string answer(const std::string& line) {
    try {
      return obey(line);
    } catch (const DeviceUnavailable& e) {
      return JsonObject().add("skipped", e.what()).str();
    } catch (const std::exception& e) {
      return JsonObject().add("error", one_line_of(e)).str();
    }
  }

  /// Destroys what was loaded: a loader may own a folder that only its destructor deletes.
  void unload() { workload_.reset(); }

 private:
  std::string obey(const std::string& line) {
    const auto space = line.find(' ');
    const auto command = line.substr(0, space);
    const auto rest = space == std::string::npos ? "" : line.substr(space + 1);
    if (command == "load") return load(Settings::parse(rest));
    if (command == "environment") return environment_answer();
    if (command == "memory") return memory_answer();
    if (command == "run") return run(words(rest));
    if (command == "first") return first(words(rest));
    if (command == "write") {
      const auto all = parity_workload().values();
      write_tensors(Settings::decode(rest), all);
      return JsonObject().add("written", all.size()).str();
    }
    if (command == "check") return check(words(rest));
    if (command == "losses") return losses(rest);
    if (command == "parts") return parts(words(rest));
    if (command == "operators") return operators(words(rest));
    if (command == "dispatch") return dispatch(words(rest));
    if (command == "gemm_peak") return gemm_peak(words(rest));
    throw SettingsError(
        "expected load, run, first, write, check, losses, memory, environment, parts, operators, "
        "dispatch, gemm_peak or quit, got '" +
        command + "'");
  }

  static std::vector<std::string> words(const std::string& text) {
    std::vector<std::string> result;
    std::istringstream stream(text);
    for (std::string word; stream >> word;) result.push_back(Settings::decode(word));
    return result;
  }

  Workload& loaded() {
    if (!workload_) throw SettingsError("expected a load command first");
    return *workload_;
  }

  /// Loads while blocks from glibc's own threshold on get pages for themselves, as in any program,
  /// where the environment keeps large blocks in the heap (`--allocator tuned`). For steps that is
  /// right: no page is taken twice. But weights would lie anywhere in a page, drawn once for each
  /// process, and a product of one row with 4 MB takes 3 % more or less with that place alone.
  Workload load_mapped(const Settings& settings) const {
#ifdef __GLIBC__
    struct Threshold {
      explicit Threshold(int steps_bytes) : for_steps(steps_bytes) {
        if (for_steps > 0) mallopt(M_MMAP_THRESHOLD, 128 << 10);
      }
      ~Threshold() {
        if (for_steps > 0) mallopt(M_MMAP_THRESHOLD, for_steps);
      }
      int for_steps;
    };
    const char* named = std::getenv("MALLOC_MMAP_THRESHOLD_");
    const Threshold threshold(named == nullptr ? 0 : std::atoi(named));
#endif
    return load_(settings);
  }

  std::string load(const Settings& settings) {
    unload();
    settings_ = settings;
    const auto driver_device = torch::Device(
        settings.get("device", "cpu").starts_with("cuda") ? settings.get("device", "") : "cpu");
    driver_bytes_before_ = driver_bytes(driver_device);
    std::optional<Workload> workload;
    // Seeding a GPU's generator initializes CUDA, which a user waits for too.
    const double seconds = time_once_s(
        [&] {
          const auto threads = settings.get<int>("threads", 0);
          if (threads > 0) at::set_num_threads(threads);
          load_libraries(settings);
          seed(settings);
          workload = load_mapped(settings);
          synchronize(workload->device);
        },
        torch::kCPU);
    workload_ = std::move(workload);
    auto& w = *workload_;
    if (options_.slow > 0) {
      w.step = slowed(w.step, w.device, options_.slow);
      for (auto& [name, run] : w.parts) run = slowed(run, w.device, options_.slow);
    }
    return JsonObject()
        .add("load_s", std::max(0.0, seconds - w.check_s))
        .add("flops", w.flops)
        .add("items", w.items)
        .add("item", w.item)
        .add("parameter_bytes", w.parameter_bytes)
        .add("minimum_bytes", w.minimum_bytes)
        .add("compile_s", w.compile_s)
        .add("note", w.note)
        .str();
  }

  std::string first(const std::vector<std::string>& arguments) {
    const auto steps =
        arguments.empty() ? 0 : Settings{{"first", arguments[0]}}.require<int64_t>("first");
    if (steps < 1 && !arguments.empty()) throw SettingsError("first: expected N >= 1");
    auto& w = loaded();
    JsonObject answer;
    double first_step_s = 0;
    const double steps_s = time_once_s(
        [&] {
          first_step_s = time_once_s(w.step, w.device);
          for (int64_t i = 1; i < steps; ++i) w.step();
        },
        w.device);
    answer.add("first_step_s", first_step_s);
    if (steps > 0) answer.add("steps_s", steps_s);
    return answer.str();
  }

  std::string run(const std::vector<std::string>& arguments) {
    const auto number = [&](std::size_t i, int64_t fallback) {
      return i < arguments.size() ? Settings{{"run", arguments[i]}}.require<int64_t>("run")
                                  : fallback;
    };
    const auto samples = number(0, 0), warmup = number(1, 0), steps_per_sample = number(2, 1);
    if (samples < 1 || warmup < 0 || steps_per_sample < 1) {
      throw SettingsError("run: expected K >= 1, W >= 0 and B >= 1");
    }
    auto& w = begin_turn();
    for (int64_t i = 0; i < warmup; ++i) w.step();
    auto block =
        run_block(w.step, w.device, w.phase, static_cast<std::size_t>(samples), steps_per_sample);
    device_times(w.step, w.device, w.phase, block);
    return JsonObject()
        .add("step_ns", std::span<const double>(block.step_ns))
        .add("device_ns", std::span<const double>(block.device_ns))
        .add("enqueue_ns", std::span<const double>(block.enqueue_ns))
        .add("page_faults", block.page_faults)
        .add("involuntary_switches", block.involuntary_switches)
        .str();
  }

  Workload& begin_turn() {
    auto& w = loaded();
    if (w.warm_up) std::exchange(w.warm_up, nullptr)();
    if (w.restore) w.restore();
    seed(settings_);
    return w;
  }

  static void seed(const Settings& settings) {
    seed_generators(static_cast<uint64_t>(settings.get<int64_t>("seed", 0)),
                    choose_device(settings.get("device", "cpu")));
  }

  /// Random masks differ between languages, so a case with dropout is checked without it.
  Workload parity_workload() {
    if (!loaded().values) throw SettingsError("this worker offers no values to compare");
    if (settings_.get<double>("dropout", 0) == 0) return loaded();
    auto settings = settings_;
    settings.set("dropout", "0");
    return load_(settings);
  }

  std::string check(const std::vector<std::string>& paths) {
    if (paths.empty()) throw SettingsError("check: expected the reference's file");
    const auto reference = read_tensors(paths[0]);
    std::optional<TensorDict> golden;
    if (paths.size() > 1) golden = read_tensors(paths[1]);
    auto workload = parity_workload();
    const auto compare = options_.approximate ? measure_parity : check_parity;
    auto parity = compare(workload.values(), reference, golden ? &*golden : nullptr,
                          workload.execution.precision(workload.dtype));
    if (settings_.get<double>("dropout", 0) != 0)
      parity.note += (parity.note.empty() ? "" : "; ") + std::string("checked at dropout 0");
    return JsonObject()
        .add("passed", parity.passed)
        .add("max_abs_error", parity.max_abs_error)
        .add("tolerance", parity.tolerance)
        .add("rms_error", parity.rms_error)
        .add("rms_tolerance", parity.rms_tolerance)
        .add("worst", parity.worst)
        .add("compared", parity.compared)
        .add("note", parity.note)
        .add("cosine", parity.cosine)
        .add("top1", parity.top1)
        .str();
  }

  std::string losses(const std::string& count) {
    if (!loaded().losses) throw SettingsError("losses: the loaded case is no training");
    std::vector<double> values;
    const auto steps = Settings{{"losses", count}}.require<int64_t>("losses");
    const double seconds = time_once_s([&] { values = loaded().losses(steps); }, torch::kCPU);
    return JsonObject()
        .add("losses", std::span<const double>(values))
        .add("seconds", seconds)
        .str();
  }

  std::string parts(const std::vector<std::string>& arguments) {
    const auto steps = counts("parts K", arguments)[0];
    return json_of(time_parts(begin_turn(), steps));
  }

  std::string operators(const std::vector<std::string>& arguments) {
    const auto steps = counts("operators K", arguments)[0];
    return json_of(profile_operators(begin_turn(), steps));
  }

  std::string dispatch(const std::vector<std::string>& arguments) {
    return json_of(time_dispatch(loaded(), counts("dispatch K", arguments)[0]));
  }

  std::string gemm_peak(const std::vector<std::string>& arguments) {
    const auto found = counts("gemm_peak N K", arguments);
    const auto times = time_matmul(loaded(), static_cast<int64_t>(found[0]), found[1]);
    return JsonObject().add("gemm_peak_ns", std::span<const double>(times)).str();
  }

  /// The numbers of a command with such a usage, each at least 1.
  static std::vector<std::size_t> counts(const std::string& usage,
                                         const std::vector<std::string>& arguments) {
    auto names = words(usage);
    const auto command = names[0];
    names.erase(names.begin());
    if (arguments.size() != names.size()) {
      throw SettingsError(command + ": expected " + usage.substr(command.size() + 1) + ", got " +
                          std::to_string(arguments.size()) + " words");
    }
    std::vector<std::size_t> result;
    for (std::size_t i = 0; i < names.size(); ++i) {
      const auto value = Settings{{command, arguments[i]}}.require<int64_t>(command);
      if (value < 1)
        throw SettingsError(command + ": expected " + names[i] + " >= 1, got " + arguments[i]);
      result.push_back(static_cast<std::size_t>(value));
    }
    return result;
  }

  std::string memory_answer() {
    const auto device = workload_ ? workload_->device : torch::Device(torch::kCPU);
    const auto m = memory(device);
    return JsonObject()
        .add("resident_bytes", m.resident_bytes)
        .add("resident_peak_bytes", m.resident_peak_bytes)
        .add("device_allocated_peak_bytes", m.device_allocated_peak_bytes)
        .add("device_reserved_peak_bytes", m.device_reserved_peak_bytes)
        .add("device_driver_bytes", std::max(0.0, driver_bytes(device) - driver_bytes_before_))
        .str();
  }

  std::string environment_answer() {
    auto all = environment(workload_ ? workload_->device : torch::Device(torch::kCPU));
    if (workload_) {
      all.emplace_back("dtype", settings_.get("dtype", "float32"));
      all.emplace_back("autocast", workload_->execution.autocast_name());
      all.emplace_back("memory_format", workload_->execution.memory_format_name());
      all.emplace_back("optimizer", workload_->optimizer);
      all.emplace_back("gemm", workload_->gemm);
      all.emplace_back("engine", workload_->engine);
    }
    return environment_json(all);
  }

  WorkerOptions options_;
  std::function<Workload(const Settings&)> load_;
  Settings settings_;
  std::optional<Workload> workload_;
  double driver_bytes_before_ = 0;  // before this process used CUDA
};

}  // namespace detail

}  // namespace torchpace
