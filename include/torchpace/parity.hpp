// Are a runtime's values right? Compares named tensors with a tolerance that is computed, never set
// by hand: for each tensor and both norms |.| (largest magnitude; root mean square), in float64,
//   |own - golden| <= spread + 8 eps |golden|.
// golden is the float64 run; spread.<name> [2], which comes with it, is its rounding sensitivity:
// how far it moves when every weight and input moves by rounding. What the reference does is no
// part of the bound: a wrong reference must fail, not excuse others. Without a golden run
//   |own - reference| <= sqrt(eps) |reference|,
// integers and bools exactly. Of an approximate runtime the errors are told and nothing is allowed
// or refused by them. Reasons: docs/method.md. Twin: python/torchpace/parity.py.
#pragma once

#include <torch/torch.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "torchpace/io/tensor_dict.hpp"

namespace torchpace {

inline constexpr char kSpread[] = "spread.";  // prefix in a golden file
inline constexpr char kNoGolden[] = "no float64 run: tolerance sqrt(eps)";
inline constexpr char kAgainstReference[] = "no float64 run: errors are those from the reference";

/// Errors are differences from the golden run, without one from the reference.
struct Parity {
  bool passed = true;
  double max_abs_error = 0;  // this and the next three: of `worst`
  double tolerance = 0;
  double rms_error = 0;
  double rms_tolerance = 0;
  std::string worst;  // the tensor with the largest error / tolerance
  int64_t compared = 0;
  std::string note;
  // Of an approximate runtime, NaN where nothing has them: the smallest cosine of the angle between
  // a floating-point tensor and what is expected; of all rows of logits, the share whose largest
  // element is where it is expected.
  double cosine = std::numeric_limits<double>::quiet_NaN();
  double top1 = std::numeric_limits<double>::quiet_NaN();
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
    case torch::kFloat8_e4m3fn:
      return 0x1p-3;
    case torch::kFloat8_e5m2:
      return 0x1p-2;
    default:
      TORCH_CHECK(false, "epsilon: expected a floating dtype, got ", dtype);
  }
}

/// Whether values of this kind have no rounding.
inline bool is_exact(const torch::Tensor& x) { return !x.is_floating_point() && !x.is_complex(); }

/// Largest magnitude and root mean square of a float64 tensor; zeros of an empty one.
inline std::array<double, 2> norms(const torch::Tensor& x) {
  if (x.numel() == 0) return {0, 0};
  return {x.abs().max().item<double>(), x.square().mean().sqrt().item<double>()};
}

namespace detail {

/// Two tensors of one name, compared.
struct Difference {
  std::array<double, 2> errors = {0, 0};
  std::array<double, 2> sizes = {0, 0};  // of what is expected
  std::string problem;                   // what is not finite, and not on both sides
  double cosine = 1;                     // of the angle between the two, where they differ
};

/// On the CPU, complex numbers as pairs.
inline torch::Tensor as_pairs(const torch::Tensor& x) {
  const auto here = x.detach().to(torch::kCPU);
  return here.is_complex() ? torch::view_as_real(here.resolve_conj()) : here;
}

/// What a tensor of `dtype` can hold of x: what overflows there is infinite, however wide x is.
inline torch::Tensor rounded(const torch::Tensor& x, torch::ScalarType dtype) {
  const bool wider = x.element_size() > static_cast<int64_t>(c10::elementSize(dtype));
  return wider ? x.to(dtype) : x;
}

/// Of integers and bools: the number and the share of the elements that differ; their own size, by
/// which a tolerance would grow, is 0.
inline Difference exact_difference(const torch::Tensor& own, const torch::Tensor& expected) {
  Difference result;
  if (own.numel() == 0) return result;
  const auto differing =
      own.detach().to(torch::kCPU).ne(expected.detach().to(torch::kCPU)).sum().item<double>();
  result.errors = {differing, differing / static_cast<double>(own.numel())};
  return result;
}

/// The largest number of a floating dtype.
inline double largest(torch::ScalarType dtype) {
  return AT_DISPATCH_FLOATING_TYPES_AND2(torch::kHalf, torch::kBFloat16, dtype, "largest", [] {
    return static_cast<double>(std::numeric_limits<scalar_t>::max());
  });
}

/// Says where NaN or infinities are not in the same places; empty where they are. The largest
/// number of a dtype, as masks have it, counts as infinite: in float64 it is another one.
inline std::string not_finite(const torch::Tensor& own, const torch::Tensor& expected, double most,
                              const std::string& whose) {
  for (const std::string what : {"NaN", "+inf", "-inf"}) {
    const auto test = [&](const torch::Tensor& x) {
      return what == "NaN" ? x.isnan() : what == "+inf" ? x.ge(most) : x.le(-most);
    };
    const auto found = test(own), wanted = test(expected);
    if (torch::equal(found, wanted)) continue;
    return c10::str(whose, " ", wanted.sum().item<int64_t>(), " of ", own.numel(), " values ", what,
                    ", the runtime ", found.sum().item<int64_t>(), ", or in other places");
  }
  return "";
}

/// Of the angle between two tensors as vectors; 0 where only one of them is zero.
inline double cosine(const torch::Tensor& a, const torch::Tensor& b) {
  const auto length = [](const torch::Tensor& x) { return x.square().sum().sqrt().item<double>(); };
  const double lengths = length(a) * length(b);
  if (lengths == 0) return length(a) == length(b) ? 1 : 0;
  return std::clamp((a * b).sum().item<double>() / lengths, -1.0, 1.0);
}

/// In float64, over what is finite. An element that is met exactly, such as the -1e9 of a mask,
/// excuses no other. `whose` begins the words of a problem.
inline Difference difference(const torch::Tensor& own, const torch::Tensor& expected,
                             torch::ScalarType dtype, const std::string& whose) {
  if (is_exact(expected)) return exact_difference(own, expected);
  Difference result;
  auto a = as_pairs(own), b = as_pairs(expected);
  const auto a_held = rounded(a, dtype).to(torch::kFloat64);
  const auto b_held = rounded(b, dtype).to(torch::kFloat64);
  a = a.to(torch::kFloat64);
  b = b.to(torch::kFloat64);
  const double most = largest(dtype);
  const auto finite = a_held.abs().lt(most).logical_and(b_held.abs().lt(most));
  if (!finite.all().item<bool>()) {
    result.problem = not_finite(a_held, b_held, most, whose);
    a = a.where(finite, 0);
    b = b.where(finite, 0);
  }
  const auto missed = a_held.ne(b_held);
  a = a.where(missed, 0);
  b = b.where(missed, 0);
  result.errors = norms(a - b);
  result.sizes = norms(b);
  result.cosine = cosine(a, b);
  return result;
}

/// Of an error to what is allowed: above 1 fails, as does whatever cannot be told.
inline double ratio(double error, double tolerance) {
  if (error == 0) return 0;
  const double found = error / tolerance;
  return std::isfinite(tolerance) && !std::isnan(found) ? found
                                                        : std::numeric_limits<double>::infinity();
}

inline const char* kind_of(const torch::Tensor& x) {
  if (x.is_complex()) return "complex";
  if (x.is_floating_point()) return "floating-point";
  return x.scalar_type() == torch::kBool ? "bool" : "integer";
}

/// Names of `from` that `other` lacks: the first and how many; spreads are no values.
inline std::pair<std::string, int64_t> lacking(const TensorDict& from, const TensorDict& other) {
  std::pair<std::string, int64_t> result{"", 0};
  for (const auto& [name, tensor] : from) {
    if (name.starts_with(kSpread) || other.contains(name)) continue;
    if (result.second++ == 0) result.first = name;
  }
  return result;
}

/// Says where names, shapes or kinds of values are not those of `other`; empty where they are.
inline std::string mismatch(const TensorDict& own, const TensorDict& other,
                            const std::string& what) {
  const auto names = [](const std::string& lacks, const std::pair<std::string, int64_t>& missing,
                        const std::string& has) {
    return c10::str(lacks, " lacks ", missing.first, " (", missing.second, " such), which ", has,
                    " has: the two are of different models, phases or versions");
  };
  if (const auto more = lacking(own, other); more.second > 0)
    return names("the " + what, more, "the runtime");
  if (const auto fewer = lacking(other, own); fewer.second > 0)
    return names("the runtime", fewer, "the " + what);
  for (const auto& [name, found] : own) {
    const auto& expected = other.at(name);
    if (found.sizes() != expected.sizes()) {
      return c10::str(name, ": expected shape ", expected.sizes(), " of the ", what, ", found ",
                      found.sizes());
    }
    if (std::string(kind_of(found)) != kind_of(expected)) {
      return c10::str(name, ": expected ", kind_of(expected), " values as the ", what,
                      " has, found ", kind_of(found));
    }
  }
  return "";
}

/// Says why values cannot be compared; empty where they can.
inline std::string incomparable(const TensorDict& values, const TensorDict& reference,
                                const TensorDict* golden) {
  auto problem = detail::mismatch(values, reference, "reference");
  if (problem.empty() && golden != nullptr)
    problem = detail::mismatch(values, *golden, "float64 run");
  if (problem.empty() && values.empty()) return "nothing to compare: both sides are empty";
  return problem;
}

inline Parity failed_parity(const std::string& name, const std::string& note) {
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  return {false, kNone, kNone, kNone, kNone, name, 0, note};
}

/// Rows of logits, and those whose largest element is where it is expected. Logits are taken to be
/// every floating-point tensor with more than one element in its last dimension.
struct TopOne {
  int64_t rows = 0, agreeing = 0;

  void add(const torch::Tensor& own, const torch::Tensor& expected) {
    if (!own.is_floating_point() || own.dim() == 0 || own.size(-1) < 2) return;
    const auto largest_of = [](const torch::Tensor& x) {
      return x.detach().to(torch::kCPU, torch::kFloat64).argmax(-1);
    };
    const auto same = largest_of(own).eq(largest_of(expected));
    rows += same.numel();
    agreeing += same.sum().item<int64_t>();
  }
  double share() const {
    return rows > 0 ? static_cast<double>(agreeing) / static_cast<double>(rows)
                    : std::numeric_limits<double>::quiet_NaN();
  }
};

}  // namespace detail

/// Compares by name. Names, shapes and kinds of values must be those of the reference and of the
/// golden run; NaN and infinities must be in the same places. What fails so has a note and no
/// errors. `golden` may be null. Tensors may be of any dtype and device; eps is that of `dtype`.
inline Parity check_parity(const TensorDict& values, const TensorDict& reference,
                           const TensorDict* golden, torch::ScalarType dtype) {
  if (const auto why = detail::incomparable(values, reference, golden); !why.empty())
    return detail::failed_parity("", why);
  const double eps = epsilon(dtype);
  const auto& yardstick = golden == nullptr ? reference : *golden;
  const std::string what = golden == nullptr ? "reference" : "float64 run";
  Parity result;
  result.compared = static_cast<int64_t>(values.size());
  if (golden == nullptr) result.note = kNoGolden;
  double worst_ratio = -1;
  for (const auto& [name, own] : values) {
    const auto found =
        detail::difference(own, yardstick.at(name), dtype, name + ": the " + what + " has");
    if (!found.problem.empty()) return detail::failed_parity(name, found.problem);
    std::array<double, 2> tolerances = {0, 0};
    const auto spread = golden == nullptr ? yardstick.end() : golden->find(kSpread + name);
    for (std::size_t i = 0; i < tolerances.size(); ++i) {
      const double moved =
          spread == yardstick.end() ? 0 : spread->second[static_cast<int64_t>(i)].item<double>();
      tolerances[i] =
          golden == nullptr ? std::sqrt(eps) * found.sizes[i] : moved + 8 * eps * found.sizes[i];
    }
    const double ratio = std::max(detail::ratio(found.errors[0], tolerances[0]),
                                  detail::ratio(found.errors[1], tolerances[1]));
    if (ratio <= worst_ratio) continue;
    worst_ratio = ratio;
    result.worst = name;
    result.max_abs_error = found.errors[0];
    result.rms_error = found.errors[1];
    result.tolerance = tolerances[0];
    result.rms_tolerance = tolerances[1];
  }
  result.passed = worst_ratio <= 1;
  return result;
}

/// As check_parity, of a runtime whose arithmetic is coarser than that of the case: no error fails,
/// and there is no tolerance. Names, shapes, kinds of values, NaN and infinities must still agree.
/// `worst` is the tensor with the largest root mean square error relative to its size.
inline Parity measure_parity(const TensorDict& values, const TensorDict& reference,
                             const TensorDict* golden, torch::ScalarType dtype) {
  if (const auto why = detail::incomparable(values, reference, golden); !why.empty())
    return detail::failed_parity("", why);
  const auto& yardstick = golden == nullptr ? reference : *golden;
  const std::string what = golden == nullptr ? "reference" : "float64 run";
  Parity result;
  result.compared = static_cast<int64_t>(values.size());
  result.tolerance = result.rms_tolerance = std::numeric_limits<double>::quiet_NaN();
  if (golden == nullptr) result.note = kAgainstReference;
  detail::TopOne top_one;
  double worst_ratio = -1;
  for (const auto& [name, own] : values) {
    const auto& expected = yardstick.at(name);
    const auto found = detail::difference(own, expected, dtype, name + ": the " + what + " has");
    if (!found.problem.empty()) return detail::failed_parity(name, found.problem);
    // The share of integers that differ is relative already.
    const double ratio = detail::ratio(found.errors[1], is_exact(own) ? 1 : found.sizes[1]);
    if (ratio > worst_ratio) {
      worst_ratio = ratio;
      result.worst = name;
      result.max_abs_error = found.errors[0];
      result.rms_error = found.errors[1];
    }
    if (is_exact(own)) continue;
    result.cosine = std::fmin(result.cosine, found.cosine);
    top_one.add(own, expected);
  }
  result.top1 = top_one.share();
  return result;
}

}  // namespace torchpace
