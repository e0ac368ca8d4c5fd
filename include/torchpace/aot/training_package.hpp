// What a package of a compiled training step says of itself: its state tensors, its parameters by
// name, its optimizer. Format: docs/training.md. Twin: python/torchpace/aot/training_package.py.
#pragma once

#include <torch/torch.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "torchpace/aot/package.hpp"
#include "torchpace/io/tensor_spec.hpp"
#include "torchpace/optim/algorithms.hpp"
#include "torchpace/settings.hpp"

namespace torchpace {

struct TrainingPackage {
  /// Of a tensor of these sizes. Throws std::invalid_argument on what no tensor can have.
  static int64_t elements(const std::vector<int64_t>& sizes) {
    int64_t count = 1;
    for (const auto size : sizes) {
      if (size < 0 || __builtin_mul_overflow(count, size, &count))
        throw std::invalid_argument("sizes that no tensor can have");
    }
    return count;
  }
  struct StateTensor {
    std::string name;
    TensorSpec spec;
    std::optional<uint64_t> offset;  // in bytes in the initial state; none for zeros

    /// Throws std::invalid_argument on sizes that no tensor can have.
    int64_t bytes() const {
      const auto size = static_cast<int64_t>(c10::elementSize(spec.dtype));
      const auto count = elements(spec.sizes);
      if (count > std::numeric_limits<int64_t>::max() / size)
        throw std::invalid_argument(name + " of " + spec.text());
      return count * size;
    }
  };
  struct Parameter {
    std::string name;
    std::vector<int64_t> sizes;
    int64_t offset = 0;  // in elements in the flat tensors

    int64_t count() const { return c10::multiply_integers(sizes); }
    torch::Tensor of(const torch::Tensor& flat) const {
      return flat.narrow(0, offset, count()).view(sizes);
    }
  };

  std::vector<StateTensor> state;     // in the order of the code's arguments
  std::vector<Parameter> parameters;  // the trained ones; a tied one under each of its names
  std::vector<TensorSpec> inputs;
  TensorSpec target;
  std::string optimizer;  // a settings line: kind=adam beta1=0.9 ...
  std::string autocast;   // none, bfloat16
  bool deterministic = false;
  std::string gemm;  // whose matrix products: torchpace, torch

  std::string kind() const { return Settings::parse(optimizer).require<std::string>("kind"); }
  /// Throws std::invalid_argument where there is no such optimizer.
  const OptimizerAlgorithm& algorithm() const {
    if (const auto* found = find_optimizer_algorithm(kind())) return *found;
    throw std::invalid_argument("the optimizer '" + kind() + "'");
  }
  /// Flat tensors that the optimizer keeps; the first is of the gradient itself.
  std::vector<std::string> moments() const { return algorithm().moment_names(); }

  /// Throws ArchiveError on a package that is no compiled training step, or says what cannot be.
  static TrainingPackage read(const AotPackage& package) {
    if (package.get("torchpace.kind") != "training") {
      throw ArchiveError(package.path() +
                         ": expected a compiled training step of torchpace, found another " +
                         "package; make one with torchpace export-training");
    }
    try {
      return parse(package);
    } catch (const std::exception& error) {
      throw ArchiveError(package.path() + ": expected the metadata of a training package, found " +
                         error.what() + "; make it again");
    }
  }

 private:
  static TrainingPackage parse(const AotPackage& package) {
    const auto text = [&](const char* key) {
      const auto found = package.metadata().find(key);
      if (found == package.metadata().end() || found->second.empty())
        throw std::invalid_argument(std::string("no ") + key);
      return found->second;
    };
    for (const char* key : {"torchpace.torch", "torchpace.threads"})
      static_cast<void>(text(key));  // compared with this process later
    const auto device = text("torchpace.device"), code = package.get("AOTI_DEVICE_KEY");
    if (device != code)
      throw std::invalid_argument("code for " + code + " and torchpace.device " + device);
    TrainingPackage result;
    for (const auto& words : lines(text("torchpace.state"), 3)) {
      StateTensor tensor{Settings::decode(words[0]), TensorSpec::parse(words[1]), {}};
      if (words[2] != "-") tensor.offset = number<uint64_t>(words[2]);
      result.state.push_back(std::move(tensor));
    }
    for (const auto& words : lines(text("torchpace.parameters"), 3)) {
      result.parameters.push_back({Settings::decode(words[0]),
                                   TensorSpec::parse(words[1] + "float32").sizes,
                                   number<int64_t>(words[2])});
    }
    result.inputs = parse_tensor_specs(text("torchpace.inputs"));
    result.target = TensorSpec::parse(text("torchpace.target"));
    result.optimizer = text("torchpace.optimizer");
    result.autocast = text("torchpace.autocast");
    const auto deterministic = text("torchpace.deterministic");
    if (deterministic != "0" && deterministic != "1")
      throw std::invalid_argument("deterministic '" + deterministic + "', not 0 or 1");
    result.deterministic = deterministic == "1";
    result.gemm = text("torchpace.gemm");
    if (result.gemm != "torchpace" && result.gemm != "torch")
      throw std::invalid_argument("gemm '" + result.gemm + "', not torchpace or torch");
    result.check();
    return result;
  }

  /// Throws std::invalid_argument where the parts do not fit each other: the code reads and writes
  /// the state without a look at its size.
  void check() const {
    const auto settings = Settings::parse(optimizer);
    if (algorithm().is_adam()) static_cast<void>(settings.require<double>("beta1"));
    for (const auto& spec : inputs) static_cast<void>(elements(spec.sizes));
    static_cast<void>(elements(target.sizes));
    check_state(settings.get<int64_t>("accumulate", 1) > 1);
  }

  void check_state(bool accumulates) const {
    const auto& trained = state.front();
    if (trained.name != "parameters" || trained.spec.sizes.size() != 1 || !trained.offset)
      throw std::invalid_argument("no flat state");
    const auto length = elements(trained.spec.sizes);
    std::set<std::string> names;
    for (const auto& tensor : state) {
      if (!names.insert(tensor.name).second)
        throw std::invalid_argument(tensor.name + " twice in the state");
      // Zeros cost no byte of the file: without a limit a line could ask for any memory.
      if (tensor.bytes() > trained.bytes() && !tensor.offset)
        throw std::invalid_argument(tensor.name + " of " + tensor.spec.text());
    }
    auto flat = moments();
    if (accumulates) flat.emplace_back("gradient");
    for (const auto& name : flat) {
      const auto found = std::find_if(state.begin(), state.end(),
                                      [&](const StateTensor& t) { return t.name == name; });
      if (found == state.end() || found->spec.sizes != trained.spec.sizes)
        throw std::invalid_argument("no " + name + " of the size of the parameters");
    }
    if (!names.contains("steps")) throw std::invalid_argument("no steps in the state");
    for (const auto& parameter : parameters) {
      const auto count = elements(parameter.sizes);
      if (parameter.offset < 0 || count > length || parameter.offset > length - count)
        throw std::invalid_argument(parameter.name + " outside the flat state");
    }
  }

  static std::vector<std::vector<std::string>> lines(const std::string& text, std::size_t words) {
    std::vector<std::vector<std::string>> result;
    std::istringstream all(text);
    for (std::string line; std::getline(all, line);) {
      std::istringstream parts(line);
      auto& found = result.emplace_back();
      for (std::string part; std::getline(parts, part, ' ');) found.push_back(part);
      if (found.size() != words) throw std::invalid_argument("the line '" + line + "'");
    }
    if (result.empty()) throw std::invalid_argument("an empty list");
    return result;
  }

  template <class T>
  static T number(const std::string& text) {
    T value{};
    const auto* end = text.data() + text.size();
    if (std::from_chars(text.data(), end, value).ptr != end || text.empty())
      throw std::invalid_argument("'" + text + "' for a number");
    return value;
  }
};

}  // namespace torchpace
