// Do two runtimes compute the same? Compares named tensors with a tolerance that is computed, never
// set by hand: for each tensor and both norms |.| (largest magnitude; root mean square), in
// float64,
//   |own - reference| <= 4 max(|reference - truth|, spread) + 8 eps |truth|.
// truth is the float64 twin; spread.<name> [2], which comes with it, is how far that twin moves
// when every weight and input moves by rounding: what rounding may do, also where the reference was
// lucky. Without a truth the bound is sqrt(eps) |reference|. Reasons: docs/design.md, Parity. Twin:
// python/torchpace/parity.py.
#pragma once

#include <torch/torch.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>

#include "torchpace/io/tensor_dict.hpp"

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

/// Machine epsilon of a floating dtype. Throws c10::Error on another.
inline double epsilon(torch::ScalarType dtype) {
  switch (dtype) {
    case torch::kFloat64:
      return std::numeric_limits<double>::epsilon();
    case torch::kFloat32:
      return std::numeric_limits<float>::epsilon();
    case torch::kFloat16:
      return 0x1p-10;
    case torch::kBFloat16:
      return 0x1p-7;
    default:
      TORCH_CHECK(false, "epsilon: expected a floating dtype, got ", dtype);
  }
}

/// Largest magnitude and root mean square of a float64 tensor; zeros of an empty one.
inline std::array<double, 2> norms(const torch::Tensor& x) {
  if (x.numel() == 0) return {0, 0};
  return {x.abs().max().item<double>(), x.square().mean().sqrt().item<double>()};
}

/// Compares by name; both sets of names must be equal. A missing name, another shape or a value
/// that is not finite fails with a note that says which. `truth` may be null. Tensors may be of any
/// dtype and device; eps is that of `dtype`.
inline Parity check_parity(const TensorDict& values, const TensorDict& reference,
                           const TensorDict* truth, torch::ScalarType dtype) {
  Parity result;
  const auto fail = [&result](const std::string& name, const std::string& note) {
    result.passed = false;
    result.worst = name;
    result.max_abs_error = result.tolerance = result.rms_error = result.rms_tolerance =
        std::numeric_limits<double>::quiet_NaN();
    result.note = note;
    return result;
  };
  const auto wide = [](const torch::Tensor& x) {
    return x.detach().to(torch::kCPU, torch::kFloat64);
  };
  for (const auto& entry : values) {
    if (!reference.contains(entry.first))
      return fail(entry.first, "the reference has no " + entry.first);
  }
  const double eps = epsilon(dtype);
  double worst_ratio = -1;
  for (const auto& [name, reference_value] : reference) {
    const auto found = values.find(name);
    if (found == values.end())
      return fail(name, "expected " + name + " as in the reference, found none");
    const auto own = wide(found->second);
    const auto expected = wide(reference_value);
    if (own.sizes() != expected.sizes()) {
      return fail(name,
                  c10::str(name, ": expected shape ", expected.sizes(), ", found ", own.sizes()));
    }
    if (!own.isfinite().all().item<bool>())
      return fail(name, name + ": expected finite values, found others");

    const auto errors = norms(own - expected);
    std::array<double, 2> tolerances = norms(expected);
    if (truth == nullptr) {
      for (double& t : tolerances) t *= std::sqrt(eps);
    } else {
      const auto exact = truth->find(name);
      if (exact == truth->end() || exact->second.sizes() != expected.sizes()) {
        return fail(name,
                    "the float64 truth has no " + name + " of this shape; delete the cache entry");
      }
      const auto deviation = norms(expected - wide(exact->second));
      const auto magnitude = norms(wide(exact->second));
      const auto spread = truth->find("spread." + name);
      for (std::size_t i = 0; i < tolerances.size(); ++i) {
        const double moved =
            spread == truth->end() ? 0 : spread->second[static_cast<int64_t>(i)].item<double>();
        tolerances[i] = 4 * std::max(deviation[i], moved) + 8 * eps * magnitude[i];
      }
    }
    double ratio = 0;
    for (std::size_t i = 0; i < errors.size(); ++i) {
      if (errors[i] > 0) ratio = std::max(ratio, errors[i] / tolerances[i]);
    }
    ++result.compared;
    if (ratio > worst_ratio) {
      worst_ratio = ratio;
      result.worst = name;
      result.max_abs_error = errors[0];
      result.rms_error = errors[1];
      result.tolerance = tolerances[0];
      result.rms_tolerance = tolerances[1];
    }
  }
  result.passed = result.compared > 0 && worst_ratio <= 1;
  if (result.compared == 0) result.note = "nothing to compare: both sides are empty";
  if (truth == nullptr) result.note = "no truth: tolerance sqrt(eps)";
  return result;
}

}  // namespace torchpace
