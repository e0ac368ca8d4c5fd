// Which bar of a waterfall an operator belongs to, by its name.
#pragma once

#include <string>

#include "results/results.hpp"

namespace torchpace::cli {

inline constexpr const char* kMatrix = "matrix products";
inline constexpr const char* kAttention = "attention";
inline constexpr const char* kElementwise = "element-wise";
inline constexpr const char* kReductions = "reductions and norms";
inline constexpr const char* kCopies = "copies and layout";
inline constexpr const char* kOptimizer = "optimizer";
inline constexpr const char* kOther = "other operators";

/// False for the ranges of the autograd engine and of Python that stand in a profile too.
bool is_operator(const std::string& name);

/// One of the names above: what runs in the optimizer's part is the optimizer's, whatever it is.
std::string group_of(const OperatorTime& time);

}  // namespace torchpace::cli
