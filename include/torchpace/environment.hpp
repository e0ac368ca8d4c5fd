// What the numbers of this process depend on, as a flat list of names and values: torch, BLAS, threads, device, allocator,
// build. Twin: python/torchpace/environment.py (same names).
#pragma once

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <gnu/libc-version.h>
#include <torch/torch.h>
#include <torch/version.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "torchpace/json.hpp"

namespace torchpace {

using Environment = std::vector<std::pair<std::string, std::string>>;

namespace detail {

/// File name of the first mapped library whose path contains `part`, or "".
inline std::string mapped_library(const std::string& part) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    const auto slash = line.rfind('/');
    if (slash != std::string::npos && line.find(part, slash) != std::string::npos) return line.substr(slash + 1);
  }
  return "";
}

inline std::string environment_variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

inline std::string allocator_name() {
  for (const char* name : {"jemalloc", "tcmalloc", "mimalloc"}) {
    if (const auto library = mapped_library(name); !library.empty()) return library;
  }
  std::string text = std::string("glibc ") + gnu_get_libc_version();
  for (const char* name : {"GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX"}) {
    if (const auto value = environment_variable(name); !value.empty()) text += std::string(" ") + name + "=" + value;
  }
  return text;
}

}  // namespace detail

/// Build type as CMake passes it (TORCHPACE_BUILD_TYPE), else whether assertions are on.
inline std::string build_type() {
#if defined(TORCHPACE_BUILD_TYPE)
  return TORCHPACE_BUILD_TYPE;
#elif defined(NDEBUG)
  return "NDEBUG";
#else
  return "assertions on";
#endif
}

/// Of this process and the device. Does not initialise CUDA for a CPU device.
inline Environment environment(const torch::Device& device) {
  const auto yes_no = [](bool value) { return value ? "on" : "off"; };
  const auto& context = at::globalContext();
  Environment result{
      {"language", "C++"},
      {"torch", TORCH_VERSION},
      {"threads", std::to_string(at::get_num_threads())},
      {"interop_threads", std::to_string(at::get_num_interop_threads())},
      {"device", device.str()},
      {"blas", at::hasMKL() ? "mkl" : "other"},
      {"mkldnn", yes_no(at::globalContext().userEnabledMkldnn())},
      {"openmp", detail::mapped_library("omp")},
      {"cpu_capability", at::get_cpu_capability()},
      {"allocator", detail::allocator_name()},
      {"tf32_matmul", yes_no(context.allowTF32CuBLAS())},
      {"tf32_cudnn", yes_no(context.allowTF32CuDNN())},
      {"cudnn_benchmark", yes_no(context.benchmarkCuDNN())},
      {"deterministic", yes_no(context.deterministicAlgorithms())},
      {"compiler", std::string("g++ ") + __VERSION__},
      {"build_type", build_type()},
  };
#if defined(__clang__)
  result[result.size() - 2].second = __VERSION__;
#endif
  if (device.is_cuda()) result.emplace_back("cuda_runtime", std::to_string(at::detail::getCUDAHooks().versionCUDART()));
  return result;
}

inline std::string environment_json(const Environment& environment) {
  JsonObject json;
  for (const auto& [key, value] : environment) json.add(key, value);
  return json.str();
}

}  // namespace torchpace
