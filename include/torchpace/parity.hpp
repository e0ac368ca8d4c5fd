// Do two runtimes compute the same? Compares named tensors with a tolerance that is computed, never set by hand.
// Tolerance of a tensor = 4 x max|reference - truth| + 8 eps x max|truth|, truth being the float64 twin; without a truth
// sqrt(eps) x max|reference|. Twin: python/torchpace/parity.py.
#pragma once

#include <torch/torch.h>

#include <cmath>
#include <limits>
#include <string>

#include "torchpace/io/tensors.hpp"

namespace torchpace {

struct Parity {
  bool passed = true;
  double max_abs_error = 0;  // of `worst`, as `tolerance`
  double tolerance = 0;
  std::string worst;  // the tensor with the largest error / tolerance
  int64_t compared = 0;
  std::string note;
};

/// Machine epsilon of a floating dtype.
inline double epsilon(torch::ScalarType dtype) {
  switch (dtype) {
    case torch::kFloat64: return std::numeric_limits<double>::epsilon();
    case torch::kFloat32: return std::numeric_limits<float>::epsilon();
    case torch::kFloat16: return 0x1p-10;
    case torch::kBFloat16: return 0x1p-7;
    default: TORCH_CHECK(false, "epsilon: expected a floating dtype, got ", dtype);
  }
}

/// Largest absolute value; 0 of an empty tensor.
inline double max_abs(const torch::Tensor& x) {
  return x.numel() == 0 ? 0.0 : x.detach().to(torch::kFloat64).abs().max().item<double>();
}

/// Compares by name; both sets of names must be equal. A missing name, another shape or a value that is not finite fails
/// with a note that says which. `truth` may be null. Tensors may be of any dtype and device.
inline Parity check_parity(const TensorDict& values, const TensorDict& reference, const TensorDict* truth,
                           torch::ScalarType dtype) {
  Parity result;
  const auto fail = [&result](const std::string& name, const std::string& note) {
    result.passed = false;
    result.worst = name;
    result.max_abs_error = result.tolerance = std::numeric_limits<double>::quiet_NaN();
    result.note = note;
    return result;
  };
  for (const auto& entry : values) {
    if (!reference.contains(entry.first)) return fail(entry.first, "the reference has no " + entry.first);
  }
  const double eps = epsilon(dtype);
  double worst_ratio = -1;
  for (const auto& [name, expected_any] : reference) {
    const auto found = values.find(name);
    if (found == values.end()) return fail(name, "expected " + name + " as in the reference, found none");
    if (found->second.sizes() != expected_any.sizes()) {
      return fail(name, c10::str(name, ": expected shape ", expected_any.sizes(), ", found ", found->second.sizes()));
    }
    const auto actual = found->second.detach().to(torch::kCPU, torch::kFloat64);
    const auto expected = expected_any.detach().to(torch::kCPU, torch::kFloat64);
    if (!actual.isfinite().all().item<bool>()) return fail(name, name + ": a value is not finite");
    double tolerance = std::sqrt(eps) * max_abs(expected);
    if (truth != nullptr) {
      const auto exact = truth->find(name);
      if (exact == truth->end() || exact->second.sizes() != expected.sizes()) {
        return fail(name, "the float64 truth has no " + name + " of this shape; delete the cache entry");
      }
      const auto y = exact->second.to(torch::kFloat64);
      tolerance = 4 * max_abs(expected - y) + 8 * eps * max_abs(y);
    }
    const double error = max_abs(actual - expected);
    const double ratio = error == 0 ? 0 : error / tolerance;
    ++result.compared;
    if (ratio > worst_ratio) {
      worst_ratio = ratio;
      result.worst = name;
      result.max_abs_error = error;
      result.tolerance = tolerance;
    }
  }
  result.passed = result.compared > 0 && worst_ratio <= 1;
  if (result.compared == 0) result.note = "nothing to compare: both sides are empty";
  if (truth == nullptr) result.note = "no float64 truth: tolerance is sqrt(eps) x max|reference|";
  return result;
}

}  // namespace torchpace
