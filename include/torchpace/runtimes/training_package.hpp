// What a package of a compiled training step says of itself: its state tensors, its parameters by
// name, its optimiser. Format: docs/training.md. Twin: python/torchpace/training_package.py.
#pragma once

#include <torch/torch.h>

#include <charconv>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "torchpace/io/tensor_spec.hpp"
#include "torchpace/runtimes/aot_package.hpp"
#include "torchpace/settings.hpp"

namespace torchpace {

struct TrainingPackage {
  struct StateTensor {
    std::string name;
    TensorSpec spec;
    std::optional<uint64_t> offset;  // in bytes in the initial state; none for zeros
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

  std::string kind() const { return Settings::parse(optimizer).require<std::string>("kind"); }
  /// Flat tensors that the optimiser keeps; the first is of the gradient itself.
  std::vector<std::string> moments() const {
    if (kind() == "sgd") return {"momentum"};
    return {"first_moment", "second_moment"};
  }

  /// Throws ArchiveError on a package that is no compiled training step, or says what cannot be.
  static TrainingPackage read(const AotPackage& package) {
    if (package.get("torchpace.kind") != "training") {
      throw ArchiveError(package.path() +
                         ": expected a compiled training step of torchpace, found another " +
                         "package; make one with python -m torchpace.training");
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
    TrainingPackage result;
    for (const auto& words : lines(package.get("torchpace.state"), 3)) {
      StateTensor tensor{Settings::decode(words[0]), TensorSpec::parse(words[1]), {}};
      if (words[2] != "-") tensor.offset = number<uint64_t>(words[2]);
      result.state.push_back(std::move(tensor));
    }
    if (result.state.empty() || result.state.front().name != "parameters" ||
        result.state.front().spec.sizes.size() != 1)
      throw std::invalid_argument("no flat state");
    const auto length = result.state.front().spec.sizes[0];
    for (const auto& words : lines(package.get("torchpace.parameters"), 3)) {
      Parameter parameter{Settings::decode(words[0]), TensorSpec::parse(words[1] + "float32").sizes,
                          number<int64_t>(words[2])};
      if (parameter.offset < 0 || parameter.offset + parameter.count() > length)
        throw std::invalid_argument("a parameter outside the flat state");
      result.parameters.push_back(std::move(parameter));
    }
    result.inputs = package.input_specs();
    result.target = TensorSpec::parse(package.get("torchpace.target"));
    result.optimizer = package.get("torchpace.optimizer");
    result.autocast = package.get("torchpace.autocast");
    result.deterministic = package.get("torchpace.deterministic") == "1";
    static_cast<void>(result.kind());  // throws where there is none
    if (result.inputs.empty()) throw std::invalid_argument("no inputs");
    return result;
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
