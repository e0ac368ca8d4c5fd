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

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "torchpace/detail/json.hpp"
#include "torchpace/device.hpp"

namespace torchpace {

/// Names and values; the values are text, numbers and booleans as they read.
using Environment = std::vector<std::pair<std::string, std::string>>;

namespace detail {

/// Sorted, each once, separated by spaces.
inline std::string sorted_words(std::vector<std::string> words) {
  std::sort(words.begin(), words.end());
  words.erase(std::unique(words.begin(), words.end()), words.end());
  std::string text;
  for (const auto& word : words) {
    if (!text.empty()) text += ' ';
    text += word;
  }
  return text;
}

/// Paths of the loaded libraries whose file name starts with one of the stems, separated by spaces.
inline std::string mapped_libraries(std::initializer_list<const char*> stems) {
  std::vector<std::string> found;
  const auto maps = read_text("/proc/self/maps");
  for (std::string_view rest = maps; !rest.empty();) {
    const auto line = take_line(rest);
    const auto begin = line.find('/');
    if (begin == std::string::npos || line.find(".so", begin) == std::string::npos) continue;
    const auto name = line.substr(line.rfind('/') + 1);
    for (const char* stem : stems) {
      if (name.starts_with(stem)) found.emplace_back(line.substr(begin));
    }
  }
  return sorted_words(std::move(found));
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
  std::vector<std::string> found;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    for (const char* start : starts) {
      if (std::string_view(*variable).starts_with(start)) found.emplace_back(*variable);
    }
  }
  return sorted_words(std::move(found));
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

/// Of this process and the device. Does not initialize CUDA for a CPU device.
inline Environment environment(const torch::Device& device) {
  auto& context = at::globalContext();
  const auto on = [](bool value) { return value ? "on" : "off"; };
  const auto boolean = [](bool value) { return value ? "true" : "false"; };
#if defined(__clang__)
  const std::string compiler = std::string("clang ") + __clang_version__;
#else
  const std::string compiler = std::string("GCC ") + __VERSION__;
#endif
  Environment result;
  const auto add = [&result](const char* name, std::string value) {
    result.emplace_back(name, std::move(value));
  };
  add("language", "C++");
  add("torch", TORCH_VERSION);
  add("compiler", compiler);
  add("build_type", build_type());
  add("threads", std::to_string(at::get_num_threads()));
  add("interop_threads", std::to_string(at::get_num_interop_threads()));
  add("affinity", std::to_string(detail::affinity_count()));
  add("cpu_capability", at::get_cpu_capability());
  add("blas", at::hasMKL() ? "mkl" : "other");
  add("blas_library",
      detail::mapped_libraries({"libmkl", "libopenblas", "libblas", "libcublas.so"}));
  add("mkldnn", boolean(at::hasMKLDNN() && context.userEnabledMkldnn()));
  add("openmp", detail::mapped_libraries({"libgomp", "libiomp5", "libomp"}));
  add("allocator", detail::allocator_name());
  add("malloc_settings",
      detail::variables({"MALLOC_", "MIMALLOC_", "GLIBC_TUNABLES=", "LD_PRELOAD=",
                         "PYTORCH_CUDA_ALLOC_CONF=", "PYTORCH_ALLOC_CONF="}));
  add("openmp_settings", detail::variables({"OMP_", "GOMP_", "KMP_", "MKL_"}));
  add("tf32", std::string("matmul ") + on(context.allowTF32CuBLAS()) + ", cudnn " +
                  on(context.allowTF32CuDNN()));
  add("flush_denormal", boolean(detail::flushes_denormals()));
  add("deterministic", boolean(context.deterministicAlgorithms()));
  add("device", device.str());
  if (device.is_cuda()) {
    const auto version = at::detail::getCUDAHooks().versionCUDART();  // 13000 for 13.0
    add("cuda", std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10));
    add("cudnn", std::to_string(at::detail::getCUDAHooks().versionRuntimeCuDNN()));
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
