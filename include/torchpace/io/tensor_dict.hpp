// Tensors by name: what files of tensors hold and what parity compares.
#pragma once

#include <torch/types.h>

#include <map>
#include <string>

namespace torchpace {

using TensorDict = std::map<std::string, torch::Tensor>;

}  // namespace torchpace
