// cpp-int8: a package that AOTInductor compiled with linear layers in 8-bit integers, in C++. It is
// approximate: its outputs differ from those of the case by more than rounding.
// Twin: python/torchpace/runtimes/int8.py, which makes the packages.
#pragma once

#include <torch/torch.h>

#include <vector>

#include "torchpace/runtimes/aot.hpp"

namespace torchpace {

inline std::vector<Runtime> int8_runtimes() {
  return {{.name = "cpp-int8",
           .description = "an AOTInductor package with linear layers in int8, in C++; approximate",
           .load = load_package,
           .artifact = "int8",
           .approximate = true}};
}

}  // namespace torchpace
