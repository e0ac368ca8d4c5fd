// Shapes and dtypes as text: "1x3x224x224:float32", several joined by ";", "?" for a size that may
// vary; ":channels_last" behind the dtype for that memory format. Twin: the key `input` of a model
// of your own (docs/guides/your-own-model.md).
#pragma once

#include <torch/torch.h>

#include <array>
#include <charconv>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "torchpace/settings.hpp"

namespace torchpace {

inline constexpr int64_t kAnySize = -1;

inline constexpr std::array<std::pair<std::string_view, torch::ScalarType>, 12> kDtypeNames = {{
    {"float32", torch::kFloat32},
    {"float64", torch::kFloat64},
    {"float16", torch::kFloat16},
    {"bfloat16", torch::kBFloat16},
    {"int64", torch::kInt64},
    {"int32", torch::kInt32},
    {"int16", torch::kInt16},
    {"int8", torch::kInt8},
    {"uint8", torch::kUInt8},
    {"bool", torch::kBool},
    {"complex64", torch::kComplexFloat},
    {"complex128", torch::kComplexDouble},
}};

/// The name that Python gives a dtype: float32.
inline std::string dtype_name(torch::ScalarType dtype) {
  for (const auto& [name, value] : kDtypeNames) {
    if (value == dtype) return std::string(name);
  }
  return c10::toString(dtype);
}

/// Throws SettingsError on an unknown name.
inline torch::ScalarType dtype_named(std::string_view name) {
  std::string known;
  for (const auto& [each, value] : kDtypeNames) {
    if (each == name) return value;
    known += (known.empty() ? "" : ", ") + std::string(each);
  }
  throw SettingsError("dtype: expected one of " + known + ", got '" + std::string(name) + "'");
}

struct TensorSpec {
  std::vector<int64_t> sizes;  // kAnySize: any
  torch::ScalarType dtype = torch::kFloat32;
  bool channels_last = false;

  /// "1x8:float32"; a scalar is ":float32".
  std::string text() const {
    std::string result;
    for (const auto size : sizes) {
      if (!result.empty()) result += 'x';
      result += size == kAnySize ? std::string("?") : std::to_string(size);
    }
    result += ':';
    result += dtype_name(dtype);
    if (channels_last) result += ":channels_last";
    return result;
  }

  /// Throws SettingsError unless `text` is sizes joined by x, a colon and a dtype (float32 where
  /// there is no colon), and channels_last, or nothing, behind another colon.
  static TensorSpec parse(std::string_view text) {
    const auto colon = text.find(':');
    auto sizes = text.substr(0, colon);
    TensorSpec spec;
    if (colon != std::string_view::npos) {
      const auto rest = text.substr(colon + 1);
      const auto second = rest.find(':');
      spec.dtype = dtype_named(rest.substr(0, second));
      if (second != std::string_view::npos) spec.read_format(rest.substr(second + 1), text);
    }
    while (!sizes.empty()) {
      const auto end = std::min(sizes.find('x'), sizes.size());
      const auto size = sizes.substr(0, end);
      int64_t value = kAnySize;
      const auto* last = size.data() + size.size();
      const bool any = size == "?";
      if (!any && (size.empty() || std::from_chars(size.data(), last, value).ptr != last ||
                   value < 0 || (end < sizes.size() && end + 1 == sizes.size()))) {
        throw SettingsError("input: expected sizes and a dtype, 1x3x224x224:float32, got '" +
                            std::string(text) + "'");
      }
      spec.sizes.push_back(value);
      sizes = end == sizes.size() ? "" : sizes.substr(end + 1);
    }
    if (spec.channels_last) static_cast<void>(spec.memory_format());
    return spec;
  }

  static TensorSpec of(const torch::Tensor& tensor) {
    TensorSpec spec{tensor.sizes().vec(), tensor.scalar_type()};
    spec.channels_last =
        !tensor.is_contiguous() && ((tensor.dim() == 4 && tensor.is_contiguous(kFormats[0])) ||
                                    (tensor.dim() == 5 && tensor.is_contiguous(kFormats[1])));
    return spec;
  }

  /// Throws SettingsError where channels_last means nothing for so many sizes.
  torch::MemoryFormat memory_format() const {
    if (!channels_last) return torch::MemoryFormat::Contiguous;
    if (sizes.size() == 4) return kFormats[0];
    if (sizes.size() == 5) return kFormats[1];
    throw SettingsError("input: expected 4 or 5 sizes for channels_last, got " +
                        std::to_string(sizes.size()));
  }

  bool admits(const torch::Tensor& tensor) const {
    if (tensor.scalar_type() != dtype || static_cast<std::size_t>(tensor.dim()) != sizes.size())
      return false;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      if (sizes[i] != kAnySize && sizes[i] != tensor.size(static_cast<int64_t>(i))) return false;
    }
    return true;
  }

 private:
  static constexpr torch::MemoryFormat kFormats[] = {torch::MemoryFormat::ChannelsLast,
                                                     torch::MemoryFormat::ChannelsLast3d};

  void read_format(std::string_view format, std::string_view text) {
    if (format != "channels_last" && format != "contiguous") {
      throw SettingsError("input: expected channels_last or nothing behind the dtype, got '" +
                          std::string(text) + "'");
    }
    channels_last = format == "channels_last";
  }
};

/// Several specs joined by ";"; none for an empty text.
inline std::vector<TensorSpec> parse_tensor_specs(const std::string& text) {
  std::vector<TensorSpec> specs;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ';');) specs.push_back(TensorSpec::parse(part));
  return specs;
}

inline std::string text_of(const std::vector<TensorSpec>& specs) {
  std::string text;
  for (const auto& spec : specs) {
    if (!text.empty()) text += ';';
    text += spec.text();
  }
  return text;
}

inline std::string text_of(const std::vector<torch::Tensor>& tensors) {
  std::vector<TensorSpec> specs;
  for (const auto& tensor : tensors) specs.push_back(TensorSpec::of(tensor));
  return text_of(specs);
}

}  // namespace torchpace
