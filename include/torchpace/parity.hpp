// Do two runtimes compute the same? Compares named tensors with a tolerance that is computed, never set by hand.
// In each of two norms |.|, the largest magnitude and the root mean square, the tolerance of a tensor is
// 4 |reference - truth| + 8 eps |truth|, truth being the float64 twin; without a truth sqrt(eps) |reference|.
// The largest magnitude sees one wrong element. The root mean square sees a small error of all elements, which the rounding
// of one would hide from the first: Adam turns a gradient that is zero but for rounding into a whole step of either sign.
// Twin: python/torchpace/parity.py.
#pragma once

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "torchpace/io/tensors.hpp"

namespace torchpace {

struct Parity {
  bool passed = true;
  double max_abs_error = 0;  // this and the next three: of `worst`
  double tolerance = 0;
  double rms_error = 0;
  double rms_tolerance = 0;
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

/// Root mean square; 0 of an empty tensor.
inline double root_mean_square(const torch::Tensor& x) {
  return x.numel() == 0 ? 0.0 : x.detach().to(torch::kFloat64).square().mean().sqrt().item<double>();
}

/// Compares by name; both sets of names must be equal. A missing name, another shape or a value that is not finite fails
/// with a note that says which. `truth` may be null. Tensors may be of any dtype and device.
inline Parity check_parity(const TensorDict& values, const TensorDict& reference, const TensorDict* truth,
                           torch::ScalarType dtype) {
  Parity result;
  const auto fail = [&result](const std::string& name, const std::string& note) {
    result.passed = false;
    result.worst = name;
    result.max_abs_error = result.tolerance = result.rms_error = result.rms_tolerance =
        std::numeric_limits<double>::quiet_NaN();
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
    torch::Tensor exact;
    if (truth != nullptr) {
      const auto entry = truth->find(name);
      if (entry == truth->end() || entry->second.sizes() != expected.sizes()) {
        return fail(name, "the float64 truth has no " + name + " of this shape; delete the cache entry");
      }
      exact = entry->second.to(torch::kFloat64);
    }
    const auto measure = [&](double (*norm)(const torch::Tensor&)) {
      const double tolerance = exact.defined() ? 4 * norm(expected - exact) + 8 * eps * norm(exact)
                                               : std::sqrt(eps) * norm(expected);
      return std::pair(norm(actual - expected), tolerance);
    };
    const auto [max_error, max_tolerance] = measure(max_abs);
    const auto [rms_error, rms_tolerance] = measure(root_mean_square);
    const auto ratio_of = [](double error, double tolerance) { return error == 0 ? 0 : error / tolerance; };
    const double ratio = std::max(ratio_of(max_error, max_tolerance), ratio_of(rms_error, rms_tolerance));
    ++result.compared;
    if (ratio > worst_ratio) {
      worst_ratio = ratio;
      result.worst = name;
      result.max_abs_error = max_error;
      result.tolerance = max_tolerance;
      result.rms_error = rms_error;
      result.rms_tolerance = rms_tolerance;
    }
  }
  result.passed = result.compared > 0 && worst_ratio <= 1;
  if (result.compared == 0) result.note = "nothing to compare: both sides are empty";
  if (truth == nullptr) result.note = "no truth: tolerance sqrt(eps)";
  return result;
}

}  // namespace torchpace
