// Forward, loss, backward and optimizer as one package that AOTInductor compiled, driven from C++
// with no Python in the process. Rules and formats: docs/training.md.
// Twin: python/torchpace/aot/compiled_training.py; python/torchpace/aot/export_training.py makes
// the packages.
//
//   torchpace::CompiledTraining training("gptlite_train.pt2");
//   torch::Tensor loss = training.step(x, y, 2e-4);
//   training.save("model.pt");
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <torch/torch.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "torchpace/aot/package.hpp"
#include "torchpace/aot/training_package.hpp"
#include "torchpace/device.hpp"
#include "torchpace/io/tensor_file.hpp"
#include "torchpace/settings.hpp"

namespace torchpace {

namespace detail {

/// Deterministic algorithms, without filling new memory, for the time of the scope.
class DeterministicScope {
 public:
  explicit DeterministicScope(bool active) : active_(active) {
    if (!active_) return;
    auto& context = at::globalContext();
    algorithms_ = context.deterministicAlgorithms();
    warn_only_ = context.deterministicAlgorithmsWarnOnly();
    fill_ = context.deterministicFillUninitializedMemory();
    context.setDeterministicAlgorithms(true, false);
    context.setDeterministicFillUninitializedMemory(false);
  }
  ~DeterministicScope() {
    if (!active_) return;
    at::globalContext().setDeterministicAlgorithms(algorithms_, warn_only_);
    at::globalContext().setDeterministicFillUninitializedMemory(fill_);
  }
  DeterministicScope(const DeterministicScope&) = delete;
  DeterministicScope& operator=(const DeterministicScope&) = delete;

 private:
  bool active_, algorithms_ = false, warn_only_ = false, fill_ = false;
};

inline torch::Tensor random_state(at::Generator generator) {
  std::lock_guard<std::mutex> lock(generator.mutex());
  return generator.get_state();
}

inline void set_random_state(at::Generator generator, const torch::Tensor& state) {
  std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_state(state);
}

}  // namespace detail

/// A training step with its state, which lives on the package's device. For one thread at a time.
class CompiledTraining {
 public:
  /// Throws ArchiveError on a damaged package, and on one that was made for another torch, device,
  /// GPU, instruction set or number of threads: all before any of its code is opened. Without
  /// `device`, the package's.
  explicit CompiledTraining(const std::string& path, std::optional<torch::Device> device = {})
      : archive_(path), package_(TrainingPackage::read(archive_)) {
    device_ = choose_device(device ? device->str() : archive_.get("AOTI_DEVICE_KEY"));
    archive_.check_environment(device_, at::get_num_threads());
    read_initial();
    rate_ = torch::full({}, std::numeric_limits<float>::quiet_NaN(),
                        torch::TensorOptions().device(device_));
    for (const auto& [name, tensor] : initial_) {
      index_[name] = arguments_.size();
      arguments_.push_back(tensor.clone());
    }
    arguments_.push_back(rate_);
    runner_ = archive_.load(device_);
  }

  /// One step on one batch; its loss, a scalar on the device that no later step changes. Does not
  /// synchronize. Throws c10::Error on tensors of other shapes, dtypes or devices than the package
  /// takes, and on a learning rate that is negative or not finite; the state is then as it was.
  torch::Tensor step(const std::vector<torch::Tensor>& inputs, const torch::Tensor& target,
                     double learning_rate) {
    TORCH_CHECK(inputs.size() == package_.inputs.size(), "step: expected ", package_.inputs.size(),
                " inputs, got ", inputs.size());
    arguments_.resize(initial_.size() + 1);
    for (std::size_t i = 0; i < inputs.size(); ++i)
      arguments_.push_back(checked("input", i, inputs[i], package_.inputs[i]));
    arguments_.push_back(checked("target", 0, target, package_.target));
    set_rate(learning_rate);
    torch::NoGradGuard no_grad;
    const detail::DeterministicScope scope(package_.deterministic);
    auto loss = runner_->run(arguments_).at(0);
    arguments_.resize(initial_.size() + 1);  // holds no batch
    return loss;
  }
  torch::Tensor step(const torch::Tensor& input, const torch::Tensor& target,
                     double learning_rate) {
    return step(std::vector<torch::Tensor>{input}, target, learning_rate);
  }

  /// By name, as views of the state: a step changes them, and what changes them counts in the next
  /// step. A tied parameter is there under each of its names.
  TensorDict parameters() const {
    auto result = views("parameters");
    result.merge(named("parameter."));
    return result;
  }
  /// The persistent ones by name, the state's own tensors.
  TensorDict buffers() const { return named("buffer."); }

  /// Makes the module's parameters and buffers the state's own memory, without a copy. Throws
  /// c10::Error where names, shapes or dtypes differ; nothing is shared then.
  void share_with(torch::nn::Module& module) const {
    TensorDict theirs;
    for (const auto& p : module.named_parameters()) theirs[p.key()] = p.value();
    for (const auto& b : module.named_buffers()) theirs[b.key()] = b.value();
    const auto own = persistent();
    check_same(own, theirs, "the module");
    for (auto& [name, tensor] : theirs) tensor.set_data(own.at(name));
  }

  /// Parameters and buffers as a plain dictionary, which Python's load_state_dict takes. Whole on
  /// the disk before the file gets its name. Throws c10::Error where it cannot be written.
  void save(const std::string& path) const { write_dictionary(path, persistent(), true); }

  /// Parameters and buffers of such a dictionary (Python: torch.save(dict(module.state_dict()))).
  /// Leaves the optimizer's state. Throws ArchiveError or c10::Error on another file; nothing is
  /// changed then.
  void load(const std::string& path) {
    const auto content = read_dictionary(path);
    const auto own = persistent();
    check_same(own, content, path);
    copy(own, content);
  }

  /// All that a run needs to go on, and `position`, the caller's place in its data. As `save`.
  void save_checkpoint(const std::string& path, int64_t position = 0) const {
    auto content = checkpoint();
    content["position"] = torch::scalar_tensor(position, torch::kInt64);
    content["optimizer"] = bytes_of(package_.optimizer);
    content["random.cpu"] = detail::random_state(at::detail::getDefaultCPUGenerator());
    if (device_.is_cuda())
      content["random.cuda"] = detail::random_state(at::globalContext().defaultGenerator(device_));
    write_tensors(path, std::move(content), true);
  }

  /// Takes the state of a checkpoint, and torch's random state; returns its position. Throws
  /// ArchiveError or c10::Error on another file, and where it is another model's or another
  /// optimizer's; nothing is changed then.
  int64_t resume(const std::string& path) {
    auto content = read_tensors(path);
    const auto take = [&](const char* name) {
      const auto found = content.extract(name);
      return found.empty() ? torch::Tensor() : found.mapped();
    };
    const auto optimizer = take("optimizer"), position = take("position"),
               random = take("random.cpu"), random_cuda = take("random.cuda");
    const auto found = optimizer.defined() ? text_of_bytes(optimizer) : "no optimizer";
    TORCH_CHECK(found == package_.optimizer, path, ": expected a checkpoint of ",
                package_.optimizer, ", found ", found);
    const auto own = checkpoint();
    check_same(own, content, path);
    copy(own, content);
    if (random.defined()) detail::set_random_state(at::detail::getDefaultCPUGenerator(), random);
    if (random_cuda.defined() && device_.is_cuda())
      detail::set_random_state(at::globalContext().defaultGenerator(device_), random_cuda);
    return position.defined() ? position.item<int64_t>() : 0;
  }

  /// The initial state of the package, in place. Leaves the random state.
  void restart() {
    torch::NoGradGuard no_grad;
    for (std::size_t i = 0; i < initial_.size(); ++i) arguments_[i].copy_(initial_[i].second);
  }
  /// What `restart` goes back to: the state as it is now.
  void keep_as_initial() {
    for (std::size_t i = 0; i < initial_.size(); ++i) initial_[i].second = arguments_[i].clone();
  }

  /// The gradients of the first update, after weight decay and clipping: of the first moment, which
  /// began at zero. Throws c10::Error unless there was exactly one update.
  TensorDict first_gradients() const {
    const auto updates = state("steps").item<int64_t>();
    TORCH_CHECK(updates == 1, "gradients: expected one update, found ", updates);
    const auto settings = Settings::parse(package_.optimizer);
    const double factor =
        package_.algorithm().is_adam() ? 1 - settings.require<double>("beta1") : 1;
    TensorDict result;
    for (const auto& [name, moment] : views(package_.moments().front()))
      result[name] = (moment.to(torch::kFloat64) / factor).to(moment.scalar_type());
    for (const auto& [name, tensor] : named("parameter.")) result[name] = torch::zeros_like(tensor);
    return result;
  }

  const torch::Device& device() const { return device_; }
  const TrainingPackage& package() const { return package_; }

 private:
  static constexpr std::uintptr_t kAlignment = 16;  // of inputs; compiled code may count on it

  torch::Tensor checked(const char* what, std::size_t index, const torch::Tensor& tensor,
                        const TensorSpec& spec) const {
    TORCH_CHECK(tensor.defined() && spec.admits(tensor) && tensor.device() == device_,
                "step: ", what, ' ', index, ": expected ", spec.text(), " on ", device_, ", got ",
                tensor.defined() ? TensorSpec::of(tensor).text() + " on " + tensor.device().str()
                                 : std::string("an undefined tensor"));
    const auto contiguous = tensor.contiguous();
    const auto address = reinterpret_cast<std::uintptr_t>(contiguous.const_data_ptr());
    return address % kAlignment == 0 ? contiguous : contiguous.clone();
  }

  void set_rate(double rate) {
    if (rate == last_rate_) return;
    TORCH_CHECK(std::isfinite(rate) && rate >= 0,
                "step: learning rate: expected a finite number of 0 or more, got ", rate);
    if (device_.is_cpu()) {
      *rate_.data_ptr<float>() = static_cast<float>(rate);
    } else {
      rate_.fill_(rate);
    }
    last_rate_ = rate;
  }

  void read_initial() {
    const auto bytes = archive_.bytes("extra/torchpace/initial");
    for (const auto& each : package_.state) {
      const auto size = static_cast<std::size_t>(each.bytes());
      if (each.offset) {
        TORCH_CHECK(*each.offset <= bytes.size() && size <= bytes.size() - *each.offset,
                    archive_.path(), ": expected the initial ", each.name, ' ', each.spec.text(),
                    ", found ", bytes.size(), " bytes of state; make the package again");
      }
      auto tensor = torch::zeros(each.spec.sizes, each.spec.dtype);
      if (each.offset && size > 0)
        std::memcpy(tensor.data_ptr(), bytes.data() + *each.offset, size);
      initial_.emplace_back(each.name, tensor.to(device_));
    }
  }

  const torch::Tensor& state(const std::string& name) const {
    return arguments_.at(index_.at(name));
  }
  TensorDict views(const std::string& flat) const {
    TensorDict result;
    for (const auto& p : package_.parameters) result[p.name] = p.of(state(flat));
    return result;
  }
  TensorDict named(const std::string& prefix) const {
    TensorDict result;
    for (const auto& [name, index] : index_) {
      if (name.starts_with(prefix)) result[name.substr(prefix.size())] = arguments_[index];
    }
    return result;
  }
  TensorDict persistent() const {
    auto result = parameters();
    result.merge(buffers());
    return result;
  }

  /// Every number of the state by name: flat tensors parameter by parameter.
  TensorDict checkpoint() const {
    std::map<std::string, std::string> flat = {{"parameters", "parameter"},
                                               {"gradient", "gradient"}};
    for (const auto& moment : package_.moments()) flat[moment] = moment;
    TensorDict result;
    for (const auto& [name, index] : index_) {
      if (!flat.contains(name)) {
        result[name] = arguments_[index];
        continue;
      }
      for (const auto& [parameter, view] : views(name))
        result[flat.at(name) + '.' + parameter] = view;
    }
    return result;
  }

  void check_same(const TensorDict& own, const TensorDict& other, const std::string& what) const {
    for (const auto& [name, tensor] : own) {
      const auto found = other.find(name);
      TORCH_CHECK(found != other.end(), what, ": expected ", name, ' ',
                  TensorSpec::of(tensor).text(), " of ", archive_.path(), ", found none");
      TORCH_CHECK(TensorSpec::of(tensor).admits(found->second), what, ": ", name, ": expected ",
                  TensorSpec::of(tensor).text(), ", found ", TensorSpec::of(found->second).text());
    }
    for (const auto& [name, tensor] : other) {
      TORCH_CHECK(own.contains(name), what, ": expected the names of ", archive_.path(),
                  ", found also ", name);
    }
  }

  static void copy(const TensorDict& own, const TensorDict& other) {
    torch::NoGradGuard no_grad;
    for (auto [name, tensor] : own) tensor.copy_(other.at(name));
  }

  static torch::Tensor bytes_of(const std::string& text) {
    auto bytes = torch::empty({static_cast<int64_t>(text.size())}, torch::kUInt8);
    std::memcpy(bytes.data_ptr(), text.data(), text.size());
    return bytes;
  }
  static std::string text_of_bytes(const torch::Tensor& tensor) {
    const auto bytes = tensor.to(torch::kUInt8).contiguous();
    return {static_cast<const char*>(bytes.const_data_ptr()), bytes.nbytes()};
  }

  AotPackage archive_;
  TrainingPackage package_;
  torch::Device device_ = torch::kCPU;
  std::vector<std::pair<std::string, torch::Tensor>> initial_;  // in the order of the arguments
  std::map<std::string, std::size_t> index_;                    // of the state in arguments_
  std::vector<torch::Tensor> arguments_;  // the state, the rate and, during a step, the batch
  torch::Tensor rate_;
  double last_rate_ = std::numeric_limits<double>::quiet_NaN();
  std::unique_ptr<AotRunner> runner_;
};

}  // namespace torchpace
