// What a package that does not say which inputs it takes refuses: it is run once with AOTInductor's
// own checks. Without them its code reads past the end of a tensor that is too small.
#pragma once

#include <sys/mman.h>
#include <torch/torch.h>
#include <unistd.h>

#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "torchpace/aot/package.hpp"
#include "torchpace/detail/error.hpp"
#include "torchpace/detail/operator_libraries.hpp"
#include "torchpace/device.hpp"
#include "torchpace/outputs.hpp"
#include "torchpace/runtimes/detail/inference_workload.hpp"

namespace torchpace {

/// A loaded package as a forward. It may be run by as many threads at a time as it has runners.
inline CompiledForward aot_forward(std::unique_ptr<AotRunner> loaded) {
  const std::shared_ptr<AotRunner> runner(std::move(loaded));
  return {.call = [runner](const Tensors& inputs) { runner->run(inputs); },
          .outputs = [runner](const Tensors& inputs) { return tensors_of(runner->run(inputs)); }};
}

namespace detail {

/// What this process writes to standard error while `action` runs, since AOTInductor says there,
/// and not in what it throws, why it refuses.
inline std::string captured_errors(const std::function<void()>& action,
                                   std::exception_ptr& thrown) {
  const int file = memfd_create("stderr", MFD_CLOEXEC), saved = dup(STDERR_FILENO);
  dup2(file, STDERR_FILENO);
  try {
    action();
  } catch (...) {
    thrown = std::current_exception();
  }
  dup2(saved, STDERR_FILENO);
  close(saved);
  std::string text(static_cast<std::size_t>(lseek(file, 0, SEEK_END)), '\0');
  const auto count = pread(file, text.data(), text.size(), 0);
  close(file);
  text.resize(count < 0 ? 0 : static_cast<std::size_t>(count));
  return text;
}

/// Why a run failed: the check that AOTInductor named, else what was thrown. Rethrows ArchiveError.
inline std::string reason_of(const std::exception_ptr& thrown, const std::string& said) {
  std::string reason;
  try {
    std::rethrow_exception(thrown);
  } catch (const ArchiveError&) {
    throw;
  } catch (const std::exception& error) {
    reason = one_line_of(error);
  }
  std::istringstream lines(said);
  for (std::string line; std::getline(lines, line);) {
    if (const auto begin = line.find("input_handles"); begin != std::string::npos)
      reason = line.substr(begin);
    if (!operators_advice(line).empty()) reason = line;
  }
  return reason;
}

}  // namespace detail

/// What to do about inputs that are refused for `reason`, else `otherwise`.
inline std::string inputs_advice(const std::string& reason, const std::string& otherwise) {
  if (const auto operators = operators_advice(reason); !operators.empty()) return operators;
  if (reason.find("unmatched stride") == std::string::npos) return otherwise;
  return "it was made for inputs of other strides: of channels_last ones, say so behind the dtype "
         "(2x3x8x8:float32:channels_last)";
}

/// Loads a copy of the package and runs it on each of these inputs, as its checks are chosen before
/// its first run. Throws ArchiveError, with `advice`, where it refuses some.
inline void check_by_running(const AotPackage& package, const torch::Device& device,
                             const std::vector<Tensors>& all_inputs, const std::string& advice) {
  setenv("AOTI_RUNTIME_CHECK_INPUTS", "1", 1);
  std::exception_ptr thrown;
  std::size_t checked = 0;
  const auto said = detail::captured_errors(
      [&] {
        const c10::InferenceMode inference;
        const auto runner = package.load(device);
        for (; checked < all_inputs.size(); ++checked) {
          runner->run(copies_of(all_inputs[checked]));
          synchronize(device);
        }
      },
      thrown);
  unsetenv("AOTI_RUNTIME_CHECK_INPUTS");
  if (!thrown) return;
  const auto reason = detail::reason_of(thrown, said);
  throw ArchiveError(package.path() + ": the package refuses these inputs, " +
                     text_of(all_inputs[checked]) + ": " + reason + "; " +
                     inputs_advice(reason, advice));
}

}  // namespace torchpace
