// What the numbers of this process depend on, as a flat list of names and values: torch, BLAS,
// threads, device, allocator, build. Twin: python/torchpace/environment.py (same names).
#pragma once

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <gnu/libc-version.h>
#include <sched.h>
#include <torch/torch.h>
#include <torch/version.h>
#include <unistd.h>

#include <fstream>
#include <initializer_list>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "torchpace/json.hpp"

namespace torchpace {

/// Names and values; the values are text, numbers and booleans as they read.
using Environment = std::vector<std::pair<std::string, std::string>>;

namespace detail {

/// Paths of the loaded libraries whose file name starts with one of the stems, separated by spaces.
inline std::string mapped_libraries(std::initializer_list<const char*> stems) {
  std::set<std::string> found;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    const auto begin = line.find('/');
    if (begin == std::string::npos || line.find(".so", begin) == std::string::npos) continue;
    const auto name = line.substr(line.rfind('/') + 1);
    for (const char* stem : stems) {
      if (name.starts_with(stem)) found.insert(line.substr(begin));
    }
  }
  std::string text;
  for (const auto& path : found) text += (text.empty() ? "" : " ") + path;
  return text;
}

inline std::string allocator_name() {
  for (const char* name : {"jemalloc", "tcmalloc", "mimalloc"}) {
    const auto stem = std::string("lib") + name;
    if (const auto path = mapped_libraries({stem.c_str()}); !path.empty())
      return name + (" " + path);
  }
  return std::string("glibc ") + gnu_get_libc_version();
}

/// The environment variables (`NAME=value`) that start so, sorted and separated by spaces.
inline std::string variables(std::initializer_list<const char*> starts) {
  std::set<std::string> found;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    for (const char* start : starts) {
      if (std::string_view(*variable).starts_with(start)) found.insert(*variable);
    }
  }
  std::string text;
  for (const auto& variable : found) text += (text.empty() ? "" : " ") + variable;
  return text;
}

inline int affinity_count() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
}

/// Half of the smallest normal number is a denormal, or zero where denormals are flushed.
inline bool flushes_denormals() {
  volatile float smallest = std::numeric_limits<float>::min();
  return smallest * 0.5F == 0;
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
  auto& context = at::globalContext();
  const auto on = [](bool value) { return value ? "on" : "off"; };
  const auto boolean = [](bool value) { return value ? "true" : "false"; };
#if defined(__clang__)
  const std::string compiler = std::string("clang ") + __clang_version__;
#else
  const std::string compiler = std::string("GCC ") + __VERSION__;
#endif
  Environment result{
      {"language", "C++"},
      {"torch", TORCH_VERSION},
      {"compiler", compiler},
      {"build_type", build_type()},
      {"threads", std::to_string(at::get_num_threads())},
      {"interop_threads", std::to_string(at::get_num_interop_threads())},
      {"affinity", std::to_string(detail::affinity_count())},
      {"cpu_capability", at::get_cpu_capability()},
      {"blas", at::hasMKL() ? "mkl" : "other"},
      {"blas_library",
       detail::mapped_libraries({"libmkl", "libopenblas", "libblas", "libcublas.so"})},
      {"mkldnn", boolean(at::hasMKLDNN() && context.userEnabledMkldnn())},
      {"openmp", detail::mapped_libraries({"libgomp", "libiomp5", "libomp"})},
      {"allocator", detail::allocator_name()},
      {"malloc_settings",
       detail::variables({"MALLOC_", "MIMALLOC_", "GLIBC_TUNABLES=", "LD_PRELOAD=",
                          "PYTORCH_CUDA_ALLOC_CONF=", "PYTORCH_ALLOC_CONF="})},
      {"openmp_settings", detail::variables({"OMP_", "GOMP_", "KMP_", "MKL_"})},
      {"tf32", std::string("matmul ") + on(context.allowTF32CuBLAS()) + ", cudnn " +
                   on(context.allowTF32CuDNN())},
      {"flush_denormal", boolean(detail::flushes_denormals())},
      {"deterministic", boolean(context.deterministicAlgorithms())},
      {"device", device.str()},
  };
  if (device.is_cuda()) {
    result.emplace_back("cuda", std::to_string(at::detail::getCUDAHooks().versionCUDART()));
    result.emplace_back("cudnn", std::to_string(at::detail::getCUDAHooks().versionRuntimeCuDNN()));
  }
  return result;
}

/// One line of JSON; whole numbers, true and false are no strings, except for versions.
inline std::string environment_json(const Environment& environment) {
  JsonObject json;
  for (const auto& [key, value] : environment) {
    const bool number =
        !value.empty() && value.find_first_not_of("0123456789") == std::string::npos;
    const bool raw =
        (number && key != "cuda" && key != "cudnn") || value == "true" || value == "false";
    raw ? json.raw(key, value) : json.add(key, value);
  }
  return json.str();
}

}  // namespace torchpace
