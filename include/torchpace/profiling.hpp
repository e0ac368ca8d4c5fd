// Where the time of a step goes: what the worker's probes measure (docs/worker-protocol.md). They
// disturb the step, so none runs while steps are timed. Both languages take torch's own profiler
// (Kineto), so that it adds the same to both. Twin: python/torchpace/profiling.py.
#pragma once

#include <torch/csrc/autograd/profiler_kineto.h>
#include <torch/torch.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "torchpace/detail/json.hpp"
#include "torchpace/timing.hpp"
#include "torchpace/workload.hpp"

#if defined(TORCHPACE_WITH_CUDA_HEADERS)
#include <c10/cuda/CUDAFunctions.h>
#endif

namespace torchpace {

/// Times by the name of the part, in the order of the step.
using PartTimes = std::vector<std::pair<std::string, std::vector<double>>>;

/// One operator within one part, per step. `outer_calls` are those inside of nothing else that was
/// recorded: neither another operator nor the autograd engine.
struct OperatorTotals {
  std::string name, part;
  double calls = 0, outer_calls = 0, self_ns = 0, device_ns = 0;
};

struct OperatorProfile {
  std::vector<OperatorTotals> operators;
  std::vector<double> step_ns;
  double synchronizations = 0;    // per step
  bool compiled_kernels = false;  // run outside of operators
};

/// What an empty operator costs in ns: without a profiler, with it, and what it then says.
struct DispatchCost {
  std::vector<double> operator_ns, profiled_ns, profiled_self_ns;
};

namespace detail {

// Unrecorded steps before a probe.
inline constexpr int kProbeWarmUps = 2;
// Calls of an empty operator in one sample.
inline constexpr int kDispatchCalls = 500;
inline constexpr int64_t kGemmTile = 1024;  // drawn on the host; as in Python
// Before the name of a part, in a profile.
inline constexpr char kPartMark[] = "torchpace part: ";

/// One call of an operator in a profile.
struct OperatorCall {
  std::string name, part;
  int64_t begin_ns = 0;
  double self_ns = 0, device_ns = 0;
  bool outer = false;
};

/// torch's profiler, running from construction to `stop`.
class Profiler {
 public:
  explicit Profiler(const torch::Device& device) {
    namespace impl = torch::profiler::impl;
    const impl::ProfilerConfig config(impl::ProfilerState::KINETO);
    std::set<impl::ActivityType> activities = {impl::ActivityType::CPU};
    if (device.is_cuda()) activities.insert(impl::ActivityType::CUDA);
    torch::autograd::profiler::prepareProfiler(config, activities);
    torch::autograd::profiler::enableProfiler(config, activities);
    running_ = true;
  }
  ~Profiler() {
    if (running_) torch::autograd::profiler::disableProfiler();
  }
  Profiler(const Profiler&) = delete;
  Profiler& operator=(const Profiler&) = delete;

  /// The calls of operators, in the order of their begin.
  std::vector<OperatorCall> stop() {
    running_ = false;
    return calls_of(*torch::autograd::profiler::disableProfiler());
  }

 private:
  using Event = torch::autograd::profiler::KinetoEvent;
  struct Frame {
    int64_t end_ns = 0;
    std::size_t call = kNoCall;
  };
  static constexpr std::size_t kNoCall = static_cast<std::size_t>(-1);

  /// Of the host and not of CUDA's runtime, whose events are linked to the operator that made them.
  static bool is_recorded(const Event& event) {
    return event.deviceType() == c10::DeviceType::CPU && event.linkedCorrelationId() == 0 &&
           (event.scope() == static_cast<uint8_t>(at::RecordScope::FUNCTION) ||
            event.scope() == static_cast<uint8_t>(at::RecordScope::BACKWARD_FUNCTION));
  }
  /// The engine records what it does as functions too.
  static bool is_operator(const Event& event, const std::string& name) {
    return event.scope() == static_cast<uint8_t>(at::RecordScope::FUNCTION) &&
           name.find("::") != std::string::npos && !name.starts_with("autograd::");
  }

  static std::vector<OperatorCall> calls_of(const torch::autograd::profiler::ProfilerResult& all) {
    std::vector<const Event*> recorded;
    std::vector<std::pair<int64_t, std::string>> parts;
    std::unordered_map<uint64_t, double> device_ns;  // by the call that enqueued it
    for (const auto& event : all.events()) {
      const auto name = event.name();
      if (event.deviceType() != c10::DeviceType::CPU) {
        device_ns[event.linkedCorrelationId()] += static_cast<double>(event.durationNs());
      } else if (name.starts_with(kPartMark)) {
        parts.emplace_back(event.startNs(), name.substr(sizeof kPartMark - 1));
      } else if (is_recorded(event)) {
        recorded.push_back(&event);
      }
    }
    std::sort(parts.begin(), parts.end());
    std::stable_sort(recorded.begin(), recorded.end(), [](const Event* a, const Event* b) {
      return std::pair(a->startNs(), b->endNs()) < std::pair(b->startNs(), a->endNs());
    });

    std::vector<OperatorCall> calls;
    std::unordered_map<uint64_t, std::vector<Frame>> open;  // by thread
    for (const Event* event : recorded) {
      const auto begin = static_cast<int64_t>(event->startNs());
      const auto end = static_cast<int64_t>(event->endNs());
      auto& stack = open[event->startThreadId()];
      while (!stack.empty() && stack.back().end_ns <= begin) stack.pop_back();
      const auto name = event->name();
      if (!is_operator(*event, name)) {
        stack.push_back({end});
        continue;
      }
      const auto duration = static_cast<double>(end - begin);
      const auto caller = std::find_if(stack.rbegin(), stack.rend(),
                                       [](const Frame& frame) { return frame.call != kNoCall; });
      if (caller != stack.rend()) calls[caller->call].self_ns -= duration;
      const auto device = device_ns.find(event->correlationId());
      calls.push_back({name, part_at(parts, begin), begin, duration,
                       device == device_ns.end() ? 0 : device->second, stack.empty()});
      stack.push_back({end, calls.size() - 1});
    }
    return calls;
  }

  /// Of the part that began last. Another thread's work has its part too: parts end synchronized.
  static std::string part_at(const std::vector<std::pair<int64_t, std::string>>& parts,
                             int64_t time) {
    const auto after = std::upper_bound(parts.begin(), parts.end(), time,
                                        [](int64_t t, const auto& part) { return t < part.first; });
    return after == parts.begin() ? "" : std::prev(after)->second;
  }

  bool running_ = false;
};

/// Counts the operators that wait for the device, which torch warns of where it is told to. Needs a
/// build with CUDA's headers; without it, and on the CPU, there are none.
class Synchronizations {
 public:
  explicit Synchronizations([[maybe_unused]] const torch::Device& device) {
#if defined(TORCHPACE_WITH_CUDA_HEADERS)
    if (device.is_cuda())
      c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_WARN);
#endif
    c10::WarningUtils::set_warning_handler(&handler_);
  }
  ~Synchronizations() {
    c10::WarningUtils::set_warning_handler(handler_.next);
#if defined(TORCHPACE_WITH_CUDA_HEADERS)
    c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_DISABLED);
#endif
  }
  Synchronizations(const Synchronizations&) = delete;
  Synchronizations& operator=(const Synchronizations&) = delete;

  double count() const { return handler_.count; }

 private:
  struct Handler : c10::WarningHandler {
    void process(const c10::Warning& warning) override {
      if (warning.msg().find("synchronizing CUDA operation") != std::string::npos) {
        ++count;
      } else {
        next->process(warning);
      }
    }
    c10::WarningHandler* next = c10::WarningUtils::get_warning_handler();
    double count = 0;
  };
  Handler handler_;
};

}  // namespace detail

/// Times the parts of `steps` steps apart, synchronized between them. Throws SettingsError where a
/// step has no parts. What a part does in several pieces is added up.
inline PartTimes time_parts(const Workload& workload, std::size_t steps) {
  if (workload.parts.empty()) {
    throw SettingsError(
        "parts: expected a step with parts that can be told apart, found one piece; ask for its "
        "operators");
  }
  for (int i = 0; i < detail::kProbeWarmUps; ++i) workload.step();
  synchronize(workload.device);
  PartTimes times;
  for (std::size_t step = 0; step < steps; ++step) {
    auto begin = detail::Clock::now();
    for (const auto& [name, run] : workload.parts) {
      run();
      synchronize(workload.device);
      const auto end = detail::Clock::now();
      auto found = std::find_if(times.begin(), times.end(),
                                [&](const auto& each) { return each.first == name; });
      if (found == times.end())
        found = times.insert(times.end(), {name, std::vector<double>(steps)});
      found->second[step] += detail::elapsed_ns(begin, end);
      begin = detail::Clock::now();
    }
  }
  return times;
}

/// `steps` steps under the profiler, part by part where there are parts. Numbers are per step.
inline OperatorProfile profile_operators(const Workload& workload, std::size_t steps) {
  const auto parts =
      workload.parts.empty() ? std::vector<Part>{{"step", workload.step}} : workload.parts;
  {
    // The first profile of a process takes memory between the tensors' own, and the page faults of
    // that make its steps half as long again: it is thrown away.
    const detail::Profiler discarded(workload.device);
    for (std::size_t i = 0; i < steps; ++i) workload.step();
    synchronize(workload.device);
  }
  OperatorProfile profile;
  const detail::Synchronizations synchronizations(workload.device);
  detail::Profiler profiler(workload.device);
  for (std::size_t step = 0; step < steps; ++step) {
    profile.step_ns.push_back(1e9 * time_once_s(
                                        [&] {
                                          for (const auto& [name, run] : parts) {
                                            RECORD_USER_SCOPE(detail::kPartMark + name);
                                            run();
                                          }
                                        },
                                        workload.device));
  }
  std::map<std::pair<std::string, std::string>, OperatorTotals> totals;
  const auto count = static_cast<double>(steps);
  for (const auto& call : profiler.stop()) {
    auto& total = totals[{call.part, call.name}];
    total.calls += 1;
    total.outer_calls += call.outer ? 1 : 0;
    total.self_ns += call.self_ns;
    total.device_ns += call.device_ns;
  }
  for (auto& [key, total] : totals) {
    std::tie(total.part, total.name) = key;
    for (double* value : {&total.calls, &total.outer_calls, &total.self_ns, &total.device_ns})
      *value /= count;
    profile.operators.push_back(total);
  }
  profile.synchronizations = synchronizations.count() / count;
  profile.compiled_kernels = workload.compiled_kernels;
  return profile;
}

/// What `add_` of a tensor without elements costs, on the workload's device and in its mode of
/// autograd.
inline DispatchCost time_dispatch(const Workload& workload, std::size_t samples) {
  const c10::InferenceMode inference(workload.optimizer.empty());
  auto empty = torch::empty({0}, torch::TensorOptions().device(workload.device));
  const auto other = torch::empty_like(empty);
  const auto call = [&] {
    for (int i = 0; i < detail::kDispatchCalls; ++i) empty.add_(other);
  };
  const auto sample = [&] {
    return 1e9 * time_once_s(call, workload.device) / detail::kDispatchCalls;
  };
  sample();
  DispatchCost cost;
  for (std::size_t i = 0; i < samples; ++i) cost.operator_ns.push_back(sample());
  detail::Profiler profiler(workload.device);
  sample();
  for (std::size_t i = 0; i < samples; ++i) cost.profiled_ns.push_back(sample());
  const auto calls = profiler.stop();
  const auto per_sample = static_cast<std::size_t>(detail::kDispatchCalls);
  for (std::size_t begin = per_sample; begin < calls.size(); begin += per_sample) {
    double self_ns = 0;
    for (auto i = begin; i < std::min(begin + per_sample, calls.size()); ++i)
      self_ns += calls[i].self_ns;
    cost.profiled_self_ns.push_back(self_ns / detail::kDispatchCalls);
  }
  return cost;
}

/// Times of `samples` products of two size x size matrices in ns: in the dtype that the workload's
/// own products have, on its device, with the threads of this process. On CUDA between events.
inline std::vector<double> time_matmul(const Workload& workload, int64_t size,
                                       std::size_t samples) {
  const auto dtype = workload.execution.precision(workload.dtype);
  const auto options = torch::TensorOptions().device(workload.device).dtype(dtype);
  // Numbers of its own: the workload's random state stays as it is. A tile of them, repeated: all
  // would take the host longer than the device takes for the products.
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(0);
  const auto tile = std::min<int64_t>(size, detail::kGemmTile), times = (size + tile - 1) / tile;
  const auto random = [&] {
    const auto numbers = torch::randn({tile, tile}, generator).to(options).repeat({times, times});
    return numbers.slice(0, 0, size).slice(1, 0, size).contiguous();
  };
  const auto a = random(), b = random();
  auto product = torch::empty({size, size}, options);
  const auto multiply = [&] { torch::mm_out(product, a, b); };
  // As long as clocks and libraries need, which choose a kernel at the first call.
  constexpr double kWarmUpSeconds = 0.1;
  for (double seconds = 0; seconds < kWarmUpSeconds;)
    seconds += time_once_s(multiply, workload.device);
  const auto block = run_block(multiply, workload.device, Phase::kThroughput, samples);
  return workload.device.is_cpu() ? block.step_ns : block.device_ns;
}

/// As a worker answers (docs/worker-protocol.md).
inline std::string json_of(const PartTimes& times) {
  JsonObject parts;
  for (const auto& [name, ns] : times) parts.add(name, std::span<const double>(ns));
  return JsonObject().raw("parts", parts.str()).str();
}

inline std::string json_of(const OperatorProfile& profile) {
  std::vector<std::string> operators;
  for (const auto& each : profile.operators) {
    operators.push_back(JsonObject()
                            .add("name", each.name)
                            .add("part", each.part)
                            .add("calls", each.calls)
                            .add("outer_calls", each.outer_calls)
                            .add("self_ns", each.self_ns)
                            .add("device_ns", each.device_ns)
                            .str());
  }
  return JsonObject()
      .raw("operators", json_array(operators))
      .add("step_ns", std::span<const double>(profile.step_ns))
      .add("synchronizations", profile.synchronizations)
      .add("compiled", profile.compiled_kernels)
      .str();
}

inline std::string json_of(const DispatchCost& cost) {
  return JsonObject()
      .add("operator_ns", std::span<const double>(cost.operator_ns))
      .add("profiled_ns", std::span<const double>(cost.profiled_ns))
      .add("profiled_self_ns", std::span<const double>(cost.profiled_self_ns))
      .str();
}

}  // namespace torchpace
