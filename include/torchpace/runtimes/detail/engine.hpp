// What the runtimes share that are other engines than PyTorch: they have threads of their own, and
// inputs and outputs that are bound once. Twin: python/torchpace/runtimes/detail/engine.py.
#pragma once

#include <sched.h>
#include <torch/torch.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "torchpace/runtimes/detail/inference_workload.hpp"

namespace torchpace {

/// The dtypes that engines take and return.
constexpr torch::ScalarType kEngineDtypes[] = {
    torch::kFloat32, torch::kFloat64, torch::kFloat16, torch::kBFloat16, torch::kInt64,
    torch::kInt32,   torch::kInt16,   torch::kInt8,    torch::kUInt8,    torch::kBool};

/// One forward of an engine on one batch: what runs it, and the tensors that it reads and writes.
struct BoundRun {
  std::function<void()> run;
  Tensors inputs, outputs;
};

/// A forward of an engine that binds each batch once, when it first meets it.
class EngineForward {
 public:
  /// `bind` makes a run on contiguous inputs.
  explicit EngineForward(std::function<BoundRun(const Tensors& inputs)> bind)
      : bind_(std::move(bind)) {}

  const Tensors& operator()(const Tensors& inputs) {
    const auto same = [&](const BoundRun& each) {
      return each.inputs.size() == inputs.size() &&
             std::equal(inputs.begin(), inputs.end(), each.inputs.begin(),
                        [](const auto& a, const auto& b) { return a.is_same(b); });
    };
    auto found = std::find_if(bound_.begin(), bound_.end(), same);
    if (found == bound_.end()) found = bound_.insert(bound_.end(), bind_(inputs));
    found->run();
    return found->outputs;
  }

 private:
  std::function<BoundRun(const Tensors& inputs)> bind_;
  std::vector<BoundRun> bound_;
};

/// Throws DeviceUnavailable where an engine does not take the case.
inline void expect_engine_case(const std::string& name, const Settings& settings) {
  if (settings.get("device", "cpu") != "cpu")
    throw DeviceUnavailable(name + " here is for the CPU");
  if (settings.get("memory_format", "contiguous") != "contiguous") {
    throw DeviceUnavailable(name +
                            " takes contiguous inputs; channels_last is a layout of PyTorch's");
  }
}

/// The cores that the threads of torch's operators may run on.
inline cpu_set_t team_cores() {
  torch::zeros({int64_t{torch::get_num_threads()} << 16}).add_(1);  // starts them
  cpu_set_t team;
  CPU_ZERO(&team);
  std::error_code ended;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task", ended)) {
    cpu_set_t cores;
    const pid_t thread = std::stoi(task.path().filename().string());
    if (sched_getaffinity(thread, sizeof cores, &cores) == 0) CPU_OR(&team, &team, &cores);
  }
  return team;
}

/// Where the threads beside this one belong, as ONNX Runtime writes it, `2;3` for cores 1 and 2:
/// one each, as OpenMP has bound its own. Empty where nothing is bound.
inline std::string other_cores() {
  cpu_set_t own;
  sched_getaffinity(0, sizeof own, &own);
  const auto team = team_cores();
  std::string cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &team) && !CPU_ISSET(core, &own))
      cores += (cores.empty() ? "" : ";") + std::to_string(core + 1);
  }
  return cores;
}

/// For its time this thread may run on the cores of all of its OpenMP team. OMP_PROC_BIND binds it
/// to one, and the threads that an engine starts would all inherit that.
class CoresOfTeam {
 public:
  CoresOfTeam() {
    sched_getaffinity(0, sizeof own_, &own_);
    const auto team = team_cores();
    sched_setaffinity(0, sizeof team, &team);
  }
  ~CoresOfTeam() { sched_setaffinity(0, sizeof own_, &own_); }
  CoresOfTeam(const CoresOfTeam&) = delete;
  CoresOfTeam& operator=(const CoresOfTeam&) = delete;

 private:
  cpu_set_t own_{};
};

/// An inference workload of such a forward.
inline Workload engine_workload(std::function<BoundRun(const Tensors&)> bind, Batches batches,
                                const Cost& cost, const Settings& settings, Phase phase) {
  auto forward = std::make_shared<EngineForward>(std::move(bind));
  for (int64_t i = 0; i < batches.count(); ++i) (*forward)(batches.inputs(i));
  return inference_workload({.call = [forward](const Tensors& inputs) { (*forward)(inputs); },
                             .outputs =
                                 [forward](const Tensors& inputs) {
                                   Tensors copies;
                                   for (const auto& each : (*forward)(inputs))
                                     copies.push_back(each.clone());
                                   return copies;
                                 }},
                            std::move(batches), cost, settings, phase);
}

}  // namespace torchpace
