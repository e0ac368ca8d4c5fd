// What a model returns, as tensors: every one of them is compared. Of tuples, pairs, lists and maps
// in their order; of what TorchScript returns, also of dictionaries and objects. None, numbers and
// texts are no tensors. Twin: python/torchpace/outputs.py.
#pragma once

#include <ATen/core/ivalue.h>
#include <torch/torch.h>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "torchpace/io/tensor_dict.hpp"

namespace torchpace {

using Tensors = std::vector<torch::Tensor>;

namespace detail {

inline void add_tensors(const torch::Tensor& tensor, Tensors& all) {
  if (tensor.defined()) all.push_back(tensor);
}

inline void add_tensors(const c10::IValue& value, Tensors& all) {
  const auto add_each = [&all](const auto& values) {
    for (const auto& each : values) add_tensors(c10::IValue(each), all);
  };
  if (value.isTensor()) {
    add_tensors(value.toTensor(), all);
  } else if (value.isTuple()) {
    add_each(value.toTupleRef().elements());
  } else if (value.isList()) {
    add_each(value.toListRef());
  } else if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict()) add_tensors(entry.value(), all);
  } else if (value.isObject()) {
    add_each(value.toObjectRef().slots());
  } else if (!value.isNone() && !value.isScalar() && !value.isString()) {
    TORCH_CHECK(false, "output: expected tensors in tuples, lists, dictionaries or objects, found ",
                value.tagKind(), ", whose tensors cannot be checked; return those instead");
  }
}

template <class T>
concept HasParts = requires {
  std::tuple_size<T>::value;
};
template <class T>
concept IsItem = requires(const T& item) {
  item.key();
  item.value();
};
template <class T>
concept IsRange = requires(const T& range) {
  range.begin();
  range.end();
};
template <class T>
concept IsOptional = requires(const T& value) {
  { value.has_value() } -> std::same_as<bool>;
  value.value();
};
template <class T>
inline constexpr bool kIsText = std::is_convertible_v<const T&, std::string_view>;

/// Of tensors in C++'s own containers. A compile error names a type that cannot be looked into.
template <class T>
void add_tensors(const T& value, Tensors& all) {
  if constexpr (std::is_convertible_v<const T&, torch::Tensor>) {
    add_tensors(static_cast<const torch::Tensor&>(torch::Tensor(value)), all);
  } else if constexpr (std::is_arithmetic_v<T> || std::is_enum_v<T> || kIsText<T>) {
    // no tensor
  } else if constexpr (HasParts<T>) {
    std::apply([&all](const auto&... parts) { (add_tensors(parts, all), ...); }, value);
  } else if constexpr (IsOptional<T>) {
    if (value.has_value()) add_tensors(value.value(), all);
  } else if constexpr (IsItem<T>) {
    add_tensors(value.value(), all);
  } else if constexpr (IsRange<T>) {
    for (const auto& each : value) add_tensors(each, all);
  } else {
    static_assert(std::is_convertible_v<const T&, torch::Tensor>,
                  "a model returns a tensor, or tensors in std::tuple, std::pair, std::vector, "
                  "std::optional or a map; what this one returns cannot be looked into");
  }
}

}  // namespace detail

/// Every tensor of what a model returned, in order. Throws c10::Error where TorchScript returned
/// something that may hide others.
template <class T>
Tensors tensors_of(const T& result) {
  Tensors all;
  detail::add_tensors(result, all);
  return all;
}

/// A copy on the CPU that any file of tensors can hold: dense, not quantized, resolved.
inline torch::Tensor plain(torch::Tensor x) {
  x = x.detach();
  if (x.is_quantized()) x = x.dequantize();
  if (x.is_nested()) x = x.to_padded_tensor(0);
  if (x.layout() != torch::kStrided) x = x.to_dense();
  return x.resolve_conj().resolve_neg().to(torch::kCPU).clone(torch::MemoryFormat::Contiguous);
}

/// Copies of a batch's outputs as `batch<b>.<name>`. `names` are those of the settings' key
/// `outputs`, separated by commas; where they are not as many, `output` or `output.0`, ...: then a
/// comparison by name fails. Throws c10::Error where there is no tensor.
inline TensorDict named_outputs(int64_t batch, const Tensors& outputs, const std::string& names) {
  TORCH_CHECK(!outputs.empty(), "output: expected at least one tensor, found none");
  std::vector<std::string> all;
  for (std::size_t begin = 0; begin <= names.size();) {
    const auto end = std::min(names.find(',', begin), names.size());
    all.push_back(names.substr(begin, end - begin));
    begin = end + 1;
  }
  const bool known = !names.empty() && all.size() == outputs.size();
  TensorDict result;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const auto name = known                 ? all[i]
                      : outputs.size() == 1 ? std::string("output")
                                            : "output." + std::to_string(i);
    result["batch" + std::to_string(batch) + '.' + name] = plain(outputs[i]);
  }
  return result;
}

/// Sees what calls change in place: tensors that torch counts the changes of, and, `by_value`, also
/// what code writes that torch does not see.
class ChangeWatch {
 public:
  ChangeWatch(Tensors tensors, bool by_value) : tensors_(std::move(tensors)) {
    for (const auto& tensor : tensors_) {
      versions_.push_back(version(tensor));
      const bool readable = tensor.defined() && tensor.layout() == torch::kStrided &&
                            !tensor.is_quantized() && !tensor.is_meta();
      values_.push_back(by_value && readable ? tensor.detach().clone() : torch::Tensor());
    }
  }

  /// The index of the first tensor that was changed since; none: no one was.
  std::optional<std::size_t> changed() const {
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      if (version(tensors_[i]) != versions_[i]) return i;
      if (values_[i].defined() && !same(tensors_[i], values_[i])) return i;
    }
    return std::nullopt;
  }

 private:
  /// Tensors that were made in inference mode count no changes.
  static int64_t version(const torch::Tensor& tensor) {
    return !tensor.defined() || tensor.is_inference() ? 0 : tensor._version();
  }
  static bool same(const torch::Tensor& a, const torch::Tensor& b) {
    return a.eq(b).logical_or(a.ne(a).logical_and(b.ne(b))).all().item<bool>();
  }

  Tensors tensors_;
  std::vector<int64_t> versions_;
  Tensors values_;
};

/// Sees which of the tensors that a model keeps calls change or replace.
class StateWatch {
 public:
  /// `state` gives them by name, each time as they are then; it may be null.
  explicit StateWatch(std::function<TensorDict()> state)
      : state_(std::move(state)), before_(now()), watch_(values_of(before_), /*by_value=*/false) {}

  /// The name of the first; empty: none was.
  std::string changed() const {
    const auto after = now();
    for (const auto& [name, tensor] : before_) {
      const auto found = after.find(name);
      if (found == after.end() || !found->second.is_same(tensor)) return name;
    }
    const auto index = watch_.changed();
    return index ? std::next(before_.begin(), static_cast<std::ptrdiff_t>(*index))->first : "";
  }

 private:
  TensorDict now() const { return state_ ? state_() : TensorDict(); }
  static Tensors values_of(const TensorDict& all) {
    Tensors values;
    for (const auto& [name, tensor] : all) values.push_back(tensor);
    return values;
  }

  std::function<TensorDict()> state_;
  TensorDict before_;
  ChangeWatch watch_;
};

/// Copies, each with the strides of its own.
inline Tensors copies_of(const Tensors& tensors) {
  torch::NoGradGuard no_grad;
  Tensors copies;
  for (const auto& tensor : tensors)
    copies.push_back(tensor.defined() ? tensor.detach().clone() : tensor);
  return copies;
}

/// Throws c10::Error where a call has changed the inputs.
inline void expect_unchanged(const ChangeWatch& inputs) {
  if (const auto index = inputs.changed()) {
    TORCH_CHECK(false, "the model changes its input ", *index,
                " in place, so every step would see another one; clone it first (x = x.clone())");
  }
}

/// Throws c10::Error where calls have changed what the model keeps.
inline void expect_unchanged(const StateWatch& state) {
  const auto name = state.changed();
  TORCH_CHECK(name.empty(), "the model changes its buffer ", name,
              " in forward, so every step would see another one; leave buffers as they are in "
              "inference");
}

}  // namespace torchpace
